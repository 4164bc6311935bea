"""The report: means, paired differences against SciPy, pictures, one page that needs nothing else."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torchvision.io import read_image
from trained import checkpoint

from flowdiff.collect import Job, main
from flowdiff.errors import ConfigError
from flowdiff.report import figures, summary

#: bits/dim by activation and seed: tanh is always 0.1 worse than elu, swish scatters more than it differs.
BITS = {"elu": [2.0, 2.5, 3.0], "tanh": [2.1, 2.61, 3.09], "swish": [1.5, 3.1, 2.6]}


def jobs(**more: Any) -> list[Job]:
    found = []
    for activation, numbers in BITS.items():
        for seed, bits in enumerate(numbers):
            words = {"activation": activation, "seed": str(seed), "lr": "1e-3"}
            metrics = {"bits_per_dim": bits, "recognised": 1 - bits / 10, "fd/real": 0.1}
            found.append(Job(Path(str(len(found))), [], words, metrics, "done", **more))
    return found


def test_means_and_their_errors() -> None:
    mean = summary.mean_of(BITS["elu"])
    assert mean is not None and mean.n == 3
    assert mean.mean == pytest.approx(2.5) and mean.error == pytest.approx(stats.sem(BITS["elu"]))
    assert str(summary.mean_of([2.0])) == "2" and summary.mean_of([]) is None


def test_differences_are_paired() -> None:
    found = summary.difference(jobs(), "activation", "tanh", "elu", "bits_per_dim")
    assert found is not None and found.n == 3
    pairs = [t - e for t, e in zip(BITS["tanh"], BITS["elu"], strict=True)]
    interval = stats.ttest_rel(BITS["tanh"], BITS["elu"]).confidence_interval(0.95)
    assert found.mean == pytest.approx(sum(pairs) / 3)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.verdict == "worse"
    more = summary.difference(jobs(), "activation", "tanh", "elu", "recognised")
    assert more is not None and more.mean < 0 and more.verdict == "worse"
    swish = summary.difference(jobs(), "activation", "swish", "elu", "bits_per_dim")
    assert swish is not None and swish.verdict == "no difference shown"


def test_only_settings_are_studied_and_only_what_is_shared_is_paired() -> None:
    everyone = jobs()
    assert summary.studied(everyone) == ["activation"]
    assert summary.metrics(everyone) == ["bits_per_dim", "recognised"]
    assert summary.best(everyone, "activation", "bits_per_dim") == "swish"
    assert summary.best(everyone, "activation", "recognised") == "swish"
    some = [job for job in everyone if (job.overrides["activation"], job.overrides["seed"]) != ("tanh", "1")]
    found = summary.difference(some, "activation", "tanh", "elu", "bits_per_dim")
    assert found is not None and found.n == 2 and found.mean == pytest.approx((0.1 + 0.09) / 2)
    assert summary.difference(some[:4], "activation", "tanh", "elu", "bits_per_dim") is None, "one pair is no interval"


def test_baselines() -> None:
    assert summary.baselines(jobs(), []) == {"activation": "elu"}
    assert summary.baselines(jobs(), ["activation=tanh"]) == {"activation": "tanh"}
    with pytest.raises(ConfigError, match="--baseline=lr=1: the swept keys are activation"):
        summary.baselines(jobs(), ["lr=1"])
    with pytest.raises(ConfigError, match="the values of activation are elu, tanh, swish"):
        summary.baselines(jobs(), ["activation=relu"])


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two values of two keys, two seeds; the last job is not there yet. The first has a real checkpoint."""
    root = tmp_path / "12-00-00"
    number = 0
    for n_flows in (1, 10):
        for activation in ("elu", "tanh"):
            for seed in (0, 1):
                folder = root / str(number)
                folder.mkdir(parents=True)
                words = [f"flow.n_flows={n_flows}", f"activation={activation}", f"seed={seed}"]
                state = "running" if number == 7 else "done"
                status = {"status": state, "overrides": words, "error": None, "seconds": 2.0}
                (folder / "status.json").write_text(json.dumps(status))
                if number < 7:
                    values = {"bits_per_dim": 3 - 0.1 * n_flows + 0.01 * seed, "fd_mlp_digits": 2.0 + seed}
                    content = {name: {"value": value, "n": 360} for name, value in values.items()}
                    (folder / "metrics.json").write_text(json.dumps(content))
                    (folder / "csv").mkdir()
                    curve = "step,val/loss,val/bits_per_dim\n10,2.0,3.0\n20,1.5,2.5\n"
                    (folder / "csv" / "metrics.csv").write_text(curve)
                number += 1
    (root / "0" / "checkpoints").mkdir()
    shutil.copy(checkpoint("digits"), root / "0" / "checkpoints" / "last.ckpt")
    return root


def test_report_of_an_unfinished_sweep(sweep: Path) -> None:
    assert main([str(sweep), "--baseline", "activation=tanh", "--samples", "10"]) == 0
    report = sweep / "report"
    names = {file.name for file in report.iterdir()}
    assert {"results.csv", "summary.md", "index.html", "samples_flow.n_flows_1.png"} <= names
    assert {"plot_flow.n_flows.png", "plot_flow.n_flows_activation.png", "plot_activation.png"} <= names
    assert {"curves_flow.n_flows.png", "curves_activation.png"} <= names
    text = (report / "summary.md").read_text()
    assert "8 jobs: 7 done, 1 running" in text
    assert "difference from tanh [95 % interval]" in text and "| flow.n_flows | jobs done | bits_per_dim" in text
    row = next(line for line in text.splitlines() if line.startswith("| 10 | 3/4 "))
    assert "**" in row, "ten steps are best"
    for name in re.findall(r"\]\(([^)]+)\)", text):
        assert (report / name).is_file(), name
    page = (report / "index.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    image = read_image(str(report / "plot_flow.n_flows.png"))
    assert image.shape[1] > 200 and image.float().std() > 10, "something is drawn"
    samples = read_image(str(report / "samples_flow.n_flows_1.png"))
    assert torch.unique(samples).numel() > 5


def test_report_without_anything_measured(tmp_path: Path) -> None:
    for number in (0, 1):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "status.json").write_text(
            json.dumps({"status": "failed", "overrides": [f"seed={number}"], "error": "x"})
        )
    assert main([str(tmp_path)]) == 0
    assert "2 jobs: 2 failed" in (tmp_path / "report" / "summary.md").read_text()


def test_history_of_a_run(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    assert figures.history(file, "val/loss") == ([], [])
    file.write_text("step,val/loss,lr\n1,,0.1\n2,3.5,\n4,3.25,\n")
    assert figures.history(file, "val/loss") == ([2, 4], [3.5, 3.25])


def test_two_keys_together() -> None:
    pairs = (("1", "x"), ("1", "yy"), ("2", "x"))
    everyone = [Job(Path(), [], {"a": a, "b": b}, {"fd": float(a) * len(b)}) for a, b in pairs]
    assert summary.crossed_table(everyone, "a", "b", "fd") == (["fd", "x", "yy"], [["1", "1", "2"], ["2", "2", ""]])


def test_a_key_with_many_values_has_points_only(tmp_path: Path) -> None:
    """A searched learning rate: no table of its own, no colours, no grids."""
    for number in range(summary.FEW + 1):
        folder = tmp_path / str(number)
        folder.mkdir()
        words = [f"lr={1e-3 * 1.5**number}", f"activation={'elu' if number % 2 else 'tanh'}"]
        (folder / "status.json").write_text(json.dumps({"status": "done", "overrides": words}))
        (folder / "metrics.json").write_text(json.dumps({"bits_per_dim": {"value": 2.0 + number}}))
    assert main([str(tmp_path)]) == 0
    names = {file.name for file in (tmp_path / "report").glob("*.png")}
    assert names == {"plot_lr.png", "plot_activation.png"}
    assert "| lr |" not in (tmp_path / "report" / "summary.md").read_text().split("## Jobs")[0]
