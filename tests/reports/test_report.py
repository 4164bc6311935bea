"""The report: means, paired differences against SciPy, verdicts, pictures, one page that needs nothing else."""

import html
import itertools
import json
import re
import shlex
import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torchvision.io import read_image

from flowdiff.commands.collect import main
from flowdiff.errors import ConfigError
from flowdiff.reports import figures, summary
from flowdiff.runs.job_folders import Job, collect
from tests.helpers.trained import checkpoint

#: bits/dim by activation and seed: tanh is always 0.1 worse than elu, swish scatters more than it differs.
BITS = {"elu": [2.0, 2.5, 3.0], "tanh": [2.1, 2.61, 3.09], "swish": [1.5, 3.1, 2.6]}


def jobs(**more: Any) -> list[Job]:
    found = []
    for activation, numbers in BITS.items():
        for seed, bits in enumerate(numbers):
            words = {"activation": activation, "seed": str(seed), "lr": "1e-3"}
            metrics = {"bits_per_dim": bits, "recognised": 1 - bits / 10, "fd/real": 0.1}
            found.append(Job(Path(str(len(found))), [], words, metrics, status="done", **more))
    return found


def test_means_and_their_errors() -> None:
    mean = summary.mean_of(summary.read_measured(jobs(), "activation", "elu", "bits_per_dim"))
    assert mean is not None and mean.n == 3
    assert mean.mean == pytest.approx(2.5) and mean.error == pytest.approx(stats.sem(BITS["elu"]))
    assert str(summary.mean_of([("0", 2.0)])) == "2" and summary.mean_of([]) is None
    assert str(summary.mean_of([("0", 2.0), ("0", 4.0)])) == "3", "two jobs of one seed have no error of the seeds"


def test_differences_are_paired() -> None:
    found = summary.difference(jobs(), "activation", "tanh", "elu", "bits_per_dim")
    assert found is not None and found.pairs == found.seeds == 3
    pairs = [t - e for t, e in zip(BITS["tanh"], BITS["elu"], strict=True)]
    interval = stats.ttest_rel(BITS["tanh"], BITS["elu"]).confidence_interval(0.95)
    assert found.mean == pytest.approx(sum(pairs) / 3)
    assert found.half == pytest.approx((interval.high - interval.low) / 2)
    assert found.verdict == "worse"
    more = summary.difference(jobs(), "activation", "tanh", "elu", "recognised")
    assert more is not None and more.mean < 0 and more.verdict == "worse"
    swish = summary.difference(jobs(), "activation", "swish", "elu", "bits_per_dim")
    assert swish is not None and swish.verdict == "no difference shown"


def test_only_settings_are_studied_and_only_what_is_shared_is_paired() -> None:
    everyone = jobs()
    assert summary.list_studied(everyone) == ["activation"]
    assert summary.metrics(everyone) == ["bits_per_dim", "recognised"]
    assert summary.best(everyone, "activation", "bits_per_dim") == "swish"
    assert summary.best(everyone, "activation", "recognised") == "swish"
    some = [job for job in everyone if (job.overrides["activation"], job.overrides["seed"]) != ("tanh", "1")]
    found = summary.difference(some, "activation", "tanh", "elu", "bits_per_dim")
    assert found is not None and found.pairs == 2 and found.mean == pytest.approx((0.1 + 0.09) / 2)
    alone = summary.difference(some[:4], "activation", "tanh", "elu", "bits_per_dim")
    assert alone is not None and (str(alone), alone.verdict) == ("+0.1", "one seed"), "one pair is no interval"


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


@pytest.mark.slow
def test_report_of_an_unfinished_sweep(sweep: Path) -> None:
    assert main([str(sweep), "--baseline", "activation=tanh", "--samples", "10"]) == 0
    report = sweep / "report"
    names = {file.name for file in report.iterdir()}
    assert {"results.csv", "summary.md", "index.html", "samples_flow.n_flows_1.png"} <= names
    assert {"plot_flow.n_flows.png", "plot_flow.n_flows_activation.png", "plot_activation.png"} <= names
    assert {"curves_flow.n_flows.png", "curves_activation.png"} <= names
    text = (report / "summary.md").read_text()
    assert "8 jobs: 7 done, 1 running" in text
    assert "difference from tanh [95 % each, 2 comparisons, not corrected]" in text
    assert "| flow.n_flows | jobs done | bits_per_dim" in text
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
    file = tmp_path / "csv" / "metrics.csv"
    assert figures.history(tmp_path, "val/loss") == ([], [])
    file.parent.mkdir()
    file.write_text("step,val/loss,lr\n1,,0.1\n2,3.5,\n4,3.25,\n5,inf,\n")
    assert figures.history(tmp_path, "val/loss") == ([2, 4], [3.5, 3.25])
    file.write_text("step,val/loss\nx,1\n\0" + "1," * 10000)
    assert figures.history(tmp_path, "val/loss") == ([], []), "anything else is no history"


def test_two_keys_together() -> None:
    pairs = (("1", "x"), ("1", "yy"), ("2", "x"))
    everyone = [Job(Path(), [], {"a": a, "b": b}, {"fd": float(a) * len(b)}) for a, b in pairs]
    assert summary.cross_table(everyone, "a", "b", "fd") == (["fd", "x", "yy"], [["1", "1", "2"], ["2", "2", ""]])


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


def grid(seeds: Sequence[int | None], metric: str = "bits_per_dim") -> list[Job]:
    """Two activations at three depths: tanh is 0.1 higher everywhere, up to a little of each depth and seed."""
    found = []
    for activation, n, seed in itertools.product(("elu", "tanh"), (1, 2, 3), seeds):
        words = {"activation": activation, "flow.n_flows": str(n)} | ({} if seed is None else {"seed": str(seed)})
        value = 2.0 - 0.1 * n + (seed or 0) * 0.3 + (0.1 + 0.001 * n - 0.002 * (seed or 0)) * (activation == "tanh")
        found.append(Job(Path(str(len(found))), [], words, {metric: value}, status="done"))
    return found


@pytest.mark.parametrize("seeds", [(None,), (0,), (7,)])
def test_one_seed_gives_no_verdict(seeds: tuple[int | None, ...]) -> None:
    """Three pairs of one seed are no three replicates, however much they agree."""
    found = summary.difference(grid(seeds), "activation", "tanh", "elu", "bits_per_dim")
    assert found is not None and (found.pairs, found.seeds, found.half) == (3, 1, None)
    assert found.mean == pytest.approx(0.102 - 0.002 * (seeds[0] or 0)) and found.verdict == "one seed"
    header, rows = summary.differences_table(grid(seeds), "activation", "elu")
    assert "95" not in " ".join(header) and rows[0][2:4] == ["3", "1"] and "[" not in rows[0][4]
    means = summary.means_table(grid(seeds), "activation")[1]
    assert not any("±" in cell for row in means for cell in row)


def test_other_keys_are_averaged_before_the_interval_over_seeds() -> None:
    everyone = grid((0, 1, 2))
    found = summary.difference(everyone, "activation", "tanh", "elu", "bits_per_dim")
    each = [0.102, 0.1, 0.098]  # the mean difference of each seed over the depths
    assert found is not None and (found.pairs, found.seeds) == (9, 3) and found.mean == pytest.approx(0.1)
    assert found.half == pytest.approx(stats.t.ppf(0.975, 2) * stats.sem(each))
    assert found.verdict == "worse"


def test_jobs_that_differ_in_more_than_the_key_are_not_paired() -> None:
    def job(activation: str, lr: str, seed: int, bits: float) -> Job:
        return Job(Path(), [], {"activation": activation, "lr": lr, "seed": str(seed)}, {"bits_per_dim": bits})

    one = [job("elu", "1", 0, 2.0), job("tanh", "2", 0, 2.5)]
    found = summary.difference(one, "activation", "tanh", "elu", "bits_per_dim")
    assert found is not None and (str(found), found.verdict) == ("+0.5", "one seed, not alike in lr")
    more = one + [job("elu", "1", 1, 2.1), job("tanh", "2", 1, 2.7)]
    found = summary.difference(more, "activation", "tanh", "elu", "bits_per_dim")
    assert found is not None and (found.half, found.verdict) == (None, "not alike in lr")


def test_evaluations_of_one_training_are_one_seed(tmp_path: Path) -> None:
    """Seeds of the samples are no other trainings: the seed that counts is that of the weights."""
    for number, seed in enumerate((3, 4)):
        run = tmp_path / "runs" / str(number)
        (run / "checkpoints").mkdir(parents=True)
        (run / "status.json").write_text(json.dumps({"overrides": [f"seed={seed}", "flow=coupling"]}))
    settings = itertools.product((0, 1), ("heun", "ddim"), (0, 1, 2))
    for number, (run, sampler, seed) in enumerate(settings):
        folder = tmp_path / "sweep" / str(number)
        folder.mkdir(parents=True)
        path = tmp_path / "runs" / str(run) / "checkpoints" / "best.ckpt"
        words = [f"ckpt_path='{path}'", f"sampler={sampler}", f"seed={seed}"]
        (folder / "status.json").write_text(json.dumps({"status": "done", "overrides": words}))
        value = {"value": 1.0 + (sampler == "ddim") + 0.1 * seed + 0.01 * run * (sampler == "ddim")}
        (folder / "metrics.json").write_text(json.dumps({"fd_mlp_digits": value | {"n": 9}}))
    everyone = collect(tmp_path / "sweep")
    found = summary.difference(everyone, "sampler", "ddim", "heun", "fd_mlp_digits")
    assert found is not None and (found.pairs, found.seeds, found.verdict) == (6, 2, "worse")
    alone = [job for job in everyone if job.seed == "3"]
    found = summary.difference(alone, "sampler", "ddim", "heun", "fd_mlp_digits")
    assert found is not None and (found.pairs, found.seeds, found.verdict) == (3, 1, "one seed")


def entry(value: float, better: str | None, **more: Any) -> dict[str, Any]:
    return {"value": value, "n": 10, "unit": "", "better": better, **more}


def test_a_metric_says_which_way_is_better(tmp_path: Path) -> None:
    """A toy sweep: of log_likelihood more is better, and there is a plot of it. What says nothing gets no verdict."""
    for number, (width, seed) in enumerate(itertools.product((8, 16), (0, 1))):
        folder = tmp_path / str(number)
        folder.mkdir()
        words = [f"flow.width={width}", f"seed={seed}"]
        (folder / "status.json").write_text(json.dumps({"status": "done", "overrides": words}))
        value = -1.0 + width / 16 + 0.001 * seed * width
        content = {
            "log_likelihood": {"value": value, "n": 10},  # as it was written before metrics said it
            "log_likelihood_gap": {"value": value, "n": 10},
            "strange": {"value": value, "n": 10},
            "mine/a": entry(value, "higher", plotted=True),
            "mine/b": entry(value, None),
            "mine/c": entry(value, "up"),
            "mine/filter": entry(1.0, "lower", of_model=False),
        }
        (folder / "metrics.json").write_text(json.dumps(content))
    everyone = collect(tmp_path)
    for name in ("log_likelihood", "log_likelihood_gap", "mine/a"):
        assert summary.best(everyone, "flow.width", name) == "16"
        found = summary.difference(everyone, "flow.width", "16", "8", name)
        assert found is not None and found.verdict == "better", name
    for name in ("strange", "mine/b", "mine/c"):
        assert summary.best(everyone, "flow.width", name) is None
        found = summary.difference(everyone, "flow.width", "16", "8", name)
        assert found is not None and found.half is not None and found.verdict == "differs", name
    assert summary.list_plotted(everyone) == ["log_likelihood", "strange", "mine/a"]
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "report" / "plot_flow.width.png").is_file()
    table = (tmp_path / "report" / "summary.md").read_text()
    marked = [line for line in table.splitlines() if "**" in line]
    assert len(marked) == 1 and marked[0].startswith("| 16 | 2/2 |") and marked[0].count("**") == 6


def test_jobs_that_do_not_agree_which_way_is_better() -> None:
    def job(number: int, better: str) -> Job:
        return Job(Path(), [], {"lr": str(number), "seed": "0"}, {"x": 1.0 * number}, {"x": entry(1, better)})

    assert summary.best([job(1, "higher"), job(2, "higher")], "lr", "x") == "2"
    assert summary.best([job(1, "higher"), job(2, "lower")], "lr", "x") is None


def test_names_are_plotted_as_points(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No bars, which would have to begin at 0."""
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure) or path)
    figures.plot_against(jobs(), "activation", None, tmp_path / "x.png")
    (axes, other) = drawn[0].axes
    assert not axes.patches and not other.patches and len(axes.get_xticks()) == 3
    line, _, (bars,) = axes.containers[0].lines
    assert list(line.get_ydata()) == pytest.approx([2.5, 2.6, 2.4])
    heights = [abs(segment[1][1] - segment[0][1]) / 2 for segment in bars.get_segments()]
    assert heights == pytest.approx([stats.sem(BITS[name]) for name in ("elu", "tanh", "swish")])
    assert [each.get_title() for each in drawn[0].axes] == [
        "bits_per_dim (less is better)",
        "recognised (more is better)",
    ]


@pytest.mark.slow
def test_the_page_says_where_it_is_from(sweep: Path) -> None:
    words = [str(sweep), "--samples", "0", "--baseline", "activation=tanh"]
    assert main(words) == 0
    for name in ("index.html", "summary.md"):
        text = html.unescape((sweep / "report" / name).read_text()).replace("\\_", "_")
        line = next(line for line in text.splitlines() if "Made 2" in line)
        assert f"from {sweep.resolve()}" in line and shlex.join(["python", "-m", "flowdiff.collect", *words]) in line
        stamp = re.search(r"Made (\S+ \S+) from", line)
        assert stamp is not None
        made = datetime.fromisoformat(stamp[1])
        assert abs((datetime.now().astimezone() - made).total_seconds()) < 60
