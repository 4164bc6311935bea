"""Evaluation: what is measured and written, and under which conditions."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import flowdiff
from flowdiff.commands.evaluate import checkpoints_of, expand, run_of
from flowdiff.errors import ConfigError, FlowdiffError
from flowdiff.evaluation import measurement
from flowdiff.evaluation.measurement import evaluate_run
from flowdiff.metrics.likelihood import BitsPerDim
from flowdiff.model.opening import load_data
from flowdiff.reports import summary
from flowdiff.runs.job_folders import collect
from flowdiff.samplers import batched
from tests.helpers.command_lines import Command
from tests.helpers.configs import composed
from tests.helpers.measured import measured
from tests.helpers.trained import checkpoint, edited


def test_values_with_their_conditions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = measured(tmp_path, "metrics=[bits_per_dim,fd,denoising,recognised]", "seed=3")
    ratios = {f"denoising_ratio/{s:g}" for s in (0.05, 0.1, 0.2, 0.5, 1, 2, 5)}
    assert ratios | {"bits_per_dim", "fd_mlp_digits", "fd_mlp_digits/real", "recognised"} <= set(found)
    for entry in found.values():
        assert entry["n"] == 360 and entry["split"] == "test" and entry["seed"] == 3 and entry["weights"] == "ema"
    drawn = found["fd_mlp_digits"]
    assert drawn["extractor"] == "mlp_digits" and drawn["sampler"] == "ancestral"
    assert drawn["nfe"] == drawn["num_steps"] == 2 and drawn["guidance_scale"] == 1
    assert 1 < found["bits_per_dim"]["value"] < 6
    assert found["fd_mlp_digits"]["value"] > found["fd_mlp_digits/real"]["value"] > 0
    assert (tmp_path / "samples.png").is_file()
    out = capsys.readouterr().out
    assert "fd_mlp_digits/real" in out and str(tmp_path / "metrics.json") in out
    for words in ("metric", "value", "± s.e.", "ema weights of last.ckpt\n"):
        assert words in out
    assert "\ntest split; features of mlp_digits; ancestral; NFE 2; seed 3\n" in out
    assert max(map(len, out[out.index("test split") : out.index("metrics: ")].splitlines())) <= 80


def test_repeatable_and_seeded(tmp_path: Path) -> None:
    words = ("metrics=[fd]", "split=val")
    first = measured(tmp_path / "a", *words)["fd_mlp_digits"]
    assert measured(tmp_path / "b", *words)["fd_mlp_digits"] == first
    assert measured(tmp_path / "c", *words, "seed=1")["fd_mlp_digits"]["value"] != first["value"]
    assert first["n"] == 180 and first["split"] == "val"


def test_raw_weights(tmp_path: Path) -> None:
    ema, raw = (
        measured(tmp_path / w, "metrics=[bits_per_dim]", f"weights={w}")["bits_per_dim"] for w in ("ema", "raw")
    )
    assert raw["weights"] == "raw" and raw["value"] != ema["value"]


def test_sampler_of_the_command_line(tmp_path: Path) -> None:
    found = measured(tmp_path, "metrics=[fd]", "sampler=heun", "guidance_scale=2", "split=val")["fd_mlp_digits"]
    assert found["sampler"] == "heun" and found["guidance_scale"] == 2 and found["nfe"] == 2 * (2 * 2 - 1)


def test_points(tmp_path: Path) -> None:
    found = measured(tmp_path, "metrics=[toy]", model="toy")
    assert found and all(entry["value"] is not None for entry in found.values())
    assert (tmp_path / "samples.png").is_file()


def test_what_does_not_apply_is_skipped_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = measured(tmp_path, "metrics=[bits_per_dim,recognised]", "split=val", model="unet")
    assert "bits_per_dim" not in found and "recognised" in found
    assert "skipped bits_per_dim: " in capsys.readouterr().out


def test_end_of_a_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, metrics = Path(checkpoint("digits")), {"b": BitsPerDim()}
    data = load_data(flowdiff.load(path))
    for folder in (tmp_path / "tensorboard", tmp_path / "tensorboard" / "val"):
        folder.mkdir()
        (folder / "events.out.tfevents.0").touch()
    found = evaluate_run(path, metrics, tmp_path, data, 0, torch.device("cpu"))
    assert found == json.loads((tmp_path / "metrics.json").read_text()) and "bits_per_dim" in found
    out = capsys.readouterr().out
    for path in (checkpoint("digits"), tmp_path / "samples.png", tmp_path / "tensorboard"):
        assert f"{path}\n" in out or f"{path}   " in out


def test_results_stand_beside_the_run_by_default(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    shutil.copy(checkpoint("digits"), run / "checkpoints" / "last.ckpt")
    assert run_of(str(run / "checkpoints" / "last.ckpt")) == str(run)
    assert run_of("/nowhere/last.ckpt") == run_of(None) == "outputs"
    cfg = composed("evaluate", f"ckpt_path={run}/checkpoints/last.ckpt")
    assert str(cfg.output_dir).startswith(f"{run}/evaluate/")


def test_data_that_are_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLOWDIFF_DATA", raising=False)
    dataset = {"_target_": "flowdiff.data.MNIST", "root": str(tmp_path / "gone"), "download": True}
    edited(checkpoint("digits"), tmp_path / "mnist.ckpt", lambda c: c["flowdiff"]["config"].update(dataset=dataset))
    words = (f"ckpt_path={tmp_path}/mnist.ckpt", "metrics=[bits_per_dim]")
    with pytest.raises(FlowdiffError, match="dataset.root=data: no MNIST files.*dataset.download=true"):
        measured(tmp_path / "out", *words)  # neither the stored root nor the download is followed
    with pytest.raises(FlowdiffError, match="elsewhere"):
        measured(tmp_path / "out", *words, f"data_root={tmp_path}/elsewhere")


def test_a_checkpoint_does_not_choose_what_is_called(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for key in ("metrics", "dataset"):
        evil: dict[str, Any] = {"_target_": "pathlib.Path.touch", "self": str(marker)}
        more = {key: {"evil": evil} if key == "metrics" else evil}
        edited(checkpoint("digits"), tmp_path / "evil.ckpt", lambda c, m=more: c["flowdiff"]["config"].update(m))
        words = [] if key == "metrics" else ["metrics=[bits_per_dim]"]
        with pytest.raises(FlowdiffError, match="pathlib.Path.touch"):
            measured(tmp_path / "out", f"ckpt_path={tmp_path}/evil.ckpt", *words)
        assert not marker.exists()


def test_evaluations_with_other_seeds_share_no_sample() -> None:
    seen: list[list[int]] = []

    class Recorded(batched.BatchedSampler):
        def __init__(self) -> None: ...

        def draw(self, labels: Any, seeds: Any, quiet: bool = False, what: str = "") -> batched.Drawn:
            seen.append(seeds.tolist())
            return batched.Drawn(torch.zeros(len(seeds), 1))

    for seed in (0, 1, 2):
        measurement.SeededSampler(Recorded())(1000, None, seed)
    assert len({s for seeds in seen for s in seeds}) == 3000


def test_command(tmp_path: Path, command: Callable[..., Any]) -> None:
    done = command("evaluate", f"ckpt_path={checkpoint('digits')}", "metrics=[bits_per_dim]", "output_dir=here")
    assert done.returncode == 0, done.stderr
    assert "bits_per_dim" in json.loads((tmp_path / "here" / "metrics.json").read_text())
    assert "here/metrics.json" in done.stdout
    wrong = command("evaluate", f"ckpt_path={checkpoint('digits')}", "metrics=[bits]")
    assert wrong.returncode == 1 and len(wrong.stderr.splitlines()) == 1 and "bits_per_dim" in wrong.stderr


def test_help(command: Callable[..., Any]) -> None:
    done = command("evaluate", "--help")
    assert done.returncode == 0 and done.stdout.count("python -m flowdiff.evaluate ") >= 6


def test_run_names_the_checkpoints_of_a_sweep(tmp_path: Path) -> None:
    for name, files in (("0", ["best.ckpt", "last.ckpt"]), ("1", ["last.ckpt"]), ("2", []), ("10", ["best.ckpt"])):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        for file in files:
            (tmp_path / name / "checkpoints" / file).touch()
    found = checkpoints_of(f"{tmp_path}/*")
    files = ("0/checkpoints/best.ckpt", "1/checkpoints/last.ckpt", "10/checkpoints/best.ckpt")
    assert found == [f"{tmp_path}/{file}" for file in files]
    words = expand([f"run={tmp_path}/*", "metrics=[fd]"])
    assert words[0] == "metrics=[fd]" and words[1].count(",") == 2 and words[2] == "--multirun"
    assert words[3].startswith(f"output_dir={tmp_path}/evaluate/")
    assert expand([f"run={tmp_path}/*", "-m", "output_dir=x"])[1:3] == ["output_dir=x", words[1]]
    assert expand([f"run={tmp_path}/1"]) == [f"ckpt_path={tmp_path}/1/checkpoints/last.ckpt"]
    (tmp_path / "1").rename(tmp_path / "a=b, c")
    assert expand([f"run={tmp_path}/a*"]) == [f'ckpt_path="{tmp_path}/a=b, c/checkpoints/last.ckpt"']
    assert expand(["ckpt_path=x"]) == ["ckpt_path=x"]
    with pytest.raises(ConfigError, match="no run folder with a checkpoint"):
        checkpoints_of(f"{tmp_path}/2")


def test_steps_and_samplers_of_a_sweep_need_no_training(command: Command, tmp_path: Path) -> None:
    for number in (0, 1):
        (tmp_path / "sweep" / str(number) / "checkpoints").mkdir(parents=True)
        shutil.copy(checkpoint("digits"), tmp_path / "sweep" / str(number) / "checkpoints" / "last.ckpt")
        status = {"status": "done", "overrides": [f"flow.n_flows={number + 1}", "seed=0"]}
        (tmp_path / "sweep" / str(number) / "status.json").write_text(json.dumps(status))
    settings = ("metrics=[recognised]", "metrics.recognised.num_samples=20", "sampler=heun,ddim", "num_steps=2,3")
    done = command("evaluate", "--multirun", "run=sweep/*", *settings)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "sweep" / "evaluate").glob("*/*")
    jobs = collect(folder)
    assert len(jobs) == 8 and all(job.status == "done" for job in jobs)
    assert summary.list_studied(jobs) == ["flow.n_flows", "sampler", "num_steps"]
    assert all(job.metrics["recognised"] is not None for job in jobs)
    assert len(collect(tmp_path / "sweep")) == 2, "the evaluations of runs are no jobs of their sweep"
