"""Collecting a sweep, finished or not."""

import csv
import html
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flowdiff.commands.collect import main
from flowdiff.reports import summary
from flowdiff.reports.rows import rows, swept_keys
from flowdiff.runs.job_folders import collect


def job(
    root: Path,
    name: str,
    words: list[str],
    status: dict[str, Any] | None = None,
    metrics: dict[str, float | None] | None = None,
) -> None:
    """The folder of one job, as Hydra and the command line leave it."""
    (root / name / ".hydra").mkdir(parents=True)
    (root / name / ".hydra" / "overrides.yaml").write_text("".join(f"- {word}\n" for word in words))
    if status is not None:
        (root / name / "status.json").write_text(json.dumps({"overrides": words, "error": None} | status))
    if metrics is not None:
        content = {key: {"value": value, "n": 360} for key, value in metrics.items()}
        (root / name / "metrics.json").write_text(json.dumps(content))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    root = tmp_path / "12-00-00"
    words = "flow.n_flows={} activation={} seed=0 'dataset.x=[1,2]'".replace("'", "")
    done = {"status": "done", "seconds": 12.5}
    job(root, "0", words.format(1, "elu").split(), done, {"bits_per_dim": 2.3456789, "fd": None})
    job(
        root,
        "1",
        words.format(0, "elu").split(),
        {"status": "failed", "error": "flow.n_flows=0: a | b\nand more", "seconds": 1},
    )
    job(
        root,
        "2",
        words.format(1, "tanh").split(),
        {"status": "running", "seconds": 0, "started": "2020-01-01T00:00:00+0000"},
    )
    job(root, "10", words.format(3, "tanh").split())
    return root


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_table(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(sweep)]) == 0
    table = read(sweep / "report" / "results.csv")
    columns = ["job", "flow.n_flows", "activation", "bits_per_dim", "fd", "status", "seconds", "error"]
    assert list(table[0]) == columns
    assert [row["job"] for row in table] == ["0", "1", "2", "10"]
    assert [row["status"] for row in table] == ["done", "failed", "running", "not started"]
    assert [row["flow.n_flows"] for row in table] == ["1", "0", "1", "3"]
    assert table[0]["bits_per_dim"] == "2.3456789" and table[0]["fd"] == "" and table[0]["seconds"] == "12.5"
    assert table[1]["error"] == "flow.n_flows=0: a | b and more" and table[1]["bits_per_dim"] == ""
    assert float(table[2]["seconds"]) > 1e6
    out = capsys.readouterr().out
    assert "4 jobs: 1 done, 1 failed, 1 running, 1 not started" in out and "summary.md" in out


def test_markdown(sweep: Path) -> None:
    assert main([str(sweep)]) == 0
    jobs = (sweep / "report" / "summary.md").read_text().split("## Jobs")[1]
    lines = [line for line in jobs.splitlines() if line.startswith("|")]
    assert lines[0] == "| job | flow.n_flows | activation | bits_per_dim | fd | status | seconds | error |"
    assert lines[2] == "| 0 | 1 | elu | 2.346 |  | done | 12.5 |  |"
    assert r"a \| b and more" in lines[3] and len(lines) == 6


def test_again_when_the_sweep_has_gone_on(sweep: Path) -> None:
    assert main([str(sweep)]) == 0
    (sweep / "10" / "status.json").write_text(json.dumps({"status": "done", "seconds": 3}))
    assert main([str(sweep)]) == 0
    assert [row["status"] for row in read(sweep / "report" / "results.csv")] == ["done", "failed", "running", "done"]


def test_a_job_whose_process_is_gone(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = {"status": "running", "host": platform.node(), "seconds": 0}
    job(tmp_path, "0", ["seed=0"], here | {"pid": ended.pid})
    job(tmp_path, "1", ["seed=1"], here | {"pid": os.getpid()})
    job(tmp_path, "2", ["seed=2"], here | {"pid": ended.pid, "host": "another"})
    assert [j.status for j in collect(tmp_path)] == ["killed", "running", "running"]


def test_half_written_files_tell_nothing(tmp_path: Path) -> None:
    job(tmp_path, "0", ["seed=0"], {"status": "done"}, {"fd": 1.0})
    job(tmp_path, "1", ["seed=1"])
    (tmp_path / "1" / "status.json").write_text('{"status": "ru')
    (tmp_path / "1" / "metrics.json").write_text("")
    jobs = collect(tmp_path)
    assert jobs[1].status == "not started" and jobs[1].metrics == {} and jobs[1].overrides == {"seed": "1"}


def test_swept_keys_of_one_and_of_deleted(tmp_path: Path) -> None:
    job(tmp_path, "0", ["seed=0", "~debug"])
    assert swept_keys(collect(tmp_path)) == ["seed", "debug"]
    job(tmp_path, "1", ["seed=0", "+new.key={a:1,b:2}"])
    header, table = rows(collect(tmp_path), tmp_path)
    assert header[:3] == ["job", "debug", "new.key"] and table[1][2] == "{a:1,b:2}"


def test_output_elsewhere(sweep: Path, tmp_path: Path) -> None:
    assert main([str(sweep), "--output", str(tmp_path / "there")]) == 0
    assert {"results.csv", "summary.md", "index.html"} < {p.name for p in (tmp_path / "there").iterdir()}
    assert not (sweep / "report").exists()


def test_chosen_metrics(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(sweep), "--metrics", "bits,f"]) == 0
    assert "| job | flow.n_flows | activation | bits_per_dim | fd |" in (sweep / "report" / "summary.md").read_text()
    assert main([str(sweep), "--metrics", "bits"]) == 0
    assert "fd" not in (sweep / "report" / "summary.md").read_text()
    assert "fd" in read(sweep / "report" / "results.csv")[0], "the file has everything"
    assert main([str(sweep), "--metrics", "fid"]) == 1
    assert "--metrics=fid: measured were bits_per_dim, fd" in capsys.readouterr().err


def test_the_best_job_and_how_to_sample_from_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "a sweep"
    done = {"status": "done"}
    for name, bits, recognised in (("0", 2.1, 0.99), ("1", 1.9, 0.97), ("2", None, None)):
        job(
            root,
            name,
            [f"flow.n_flows={name}", "seed=0"],
            done,
            {"bits_per_dim": bits, "recognised": recognised, "x": 1},
        )
        (root / name / "checkpoints").mkdir()
        (root / name / "checkpoints" / "best.ckpt").touch()
    for words, metric, direction, value, best in (
        ([], "bits_per_dim", "lower", "1.9", "1"),
        (["--best", "recognised"], "recognised", "higher", "0.99", "0"),
    ):
        assert main([str(root), "--samples", "0", *words]) == 0
        said = capsys.readouterr().out.splitlines()
        at = said.index(f"best by {metric} ({direction} is better): {value}, job {best}: flow.n_flows={best}")
        assert shlex.split(said[at + 1]) == [
            *("python", "-m", "flowdiff.sample"),
            f"ckpt_path={root}/{best}/checkpoints/best.ckpt",
        ]
        for name in ("summary.md", "index.html"):
            page = html.unescape((root / "report" / name).read_text().replace("\\", ""))
            assert said[at] in page and said[at + 1].strip() in page
    for metric in ("x", "fid"):
        assert main([str(root), "--best", metric]) == 1
        assert capsys.readouterr().err == f"--best={metric}: must be one of bits_per_dim, recognised\n"


def test_the_best_way_of_sampling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Evaluations of one checkpoint; what a file can say beside names and numbers is no part of a command."""
    root, ckpt = tmp_path / "sweep", "/a/run/checkpoints/best.ckpt"
    for name, fd, words in (
        ("0", 3.0, ["sampler=heun", "num_steps=9"]),
        (
            "1",
            1.0,
            ["sampler=ddim", "+sampler.eta=0.5", "metrics=[fd]", "sampler._target_=os.system", "seed=$(reboot)"],
        ),
    ):
        job(root, name, [f"ckpt_path={ckpt}", *words], {"status": "done"}, {"fd_mlp_digits": fd})
    assert main([str(root), "--samples", "0"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "flowdiff.sample" in line)
    assert line == f"  python -m flowdiff.sample ckpt_path={ckpt} sampler=ddim +sampler.eta=0.5"


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "gone")]) == 1 and "gone: no such folder" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 1 and "no job in it has begun" in capsys.readouterr().err


def test_ratios_to_different_filters_are_not_compared(tmp_path: Path) -> None:
    """With and without the class the Wiener filters differ: then the RMSE itself is in the table."""

    def denoiser(name: str, told: str, ratio: float) -> None:
        job(tmp_path, name, [f"conditioning={name}"], {"status": "done"})
        entry = {"value": ratio, "rmse": 0.1 * ratio, "filter": told}
        content = {"fd": {"value": 1.0}, "denoising_ratio/1": entry}
        if told == "of the class":
            content["denoising_filter/1"] = entry | {"value": 0.95, "rmse": 0.095, "better": "lower", "of_model": False}
        (tmp_path / name / "metrics.json").write_text(json.dumps(content))

    denoiser("film", "of the class", 0.9)
    denoiser("concat", "of the class", 0.8)
    assert [job.metrics for job in collect(tmp_path)] == [
        {"fd": 1.0, "denoising_ratio/1": 0.8, "denoising_filter/1": 0.95},
        {"fd": 1.0, "denoising_ratio/1": 0.9, "denoising_filter/1": 0.95},
    ]
    denoiser("none", "of all classes", 0.7)
    assert [job.metrics["denoising_rmse/1"] for job in collect(tmp_path)] == pytest.approx([0.08, 0.09, 0.07])
    jobs = collect(tmp_path)
    assert not any("denoising_ratio/1" in job.metrics for job in jobs)
    assert [job.metrics.get("denoising_filter_rmse/1") for job in jobs] == [0.095, 0.095, None]
    assert summary.metrics(jobs) == summary.list_plotted(jobs) == ["fd", "denoising_rmse/1"]
    assert summary.best(jobs, "conditioning", "denoising_rmse/1") == "none", "an RMSE has the direction of its ratio"
