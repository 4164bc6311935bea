"""A sweep in TensorBoard: its runs told apart, HParams, text, layout; in the files, over HTTP and in a browser."""

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from flowdiff.commands import dashboard
from flowdiff.commands.command_line import read_command_line
from flowdiff.commands.configuration import to_plain
from flowdiff.errors import FlowdiffError
from flowdiff.model.vocabulary import config_dir
from flowdiff.runs.command_line import CommandLine
from flowdiff.runs.words import list_swept, run_name
from flowdiff.training import run, tensorboard
from flowdiff.training.loggers import TensorBoardLogger
from tests.helpers import browser, forked
from tests.helpers.command_lines import ROOT, TINY, Compose, environment
from tests.helpers.runs import train

SMALL = (
    *(word for word in TINY if not word.startswith("flow.n_flows")),
    *("trainer.max_steps=4", "trainer.val_check_interval=2", "trainer.limit_val_batches=1"),
    *("callbacks.sample_grid.rows=2", "callbacks.sample_grid.columns=5", "callbacks.denoising_grid.columns=5"),
)
SWEEP = ("flow.n_flows=1,2", "activation=elu,tanh", "seed=3", "metrics=[bits_per_dim]", "logger=tensorboard")
RUNS = [f"{2 * i + j}/n_flows-{n}_activation-{a}" for i, n in enumerate((1, 2)) for j, a in enumerate(("elu", "tanh"))]
VALIDATIONS = [f"{run}/val" for run in RUNS]  # runs of their own: so they have their own colours

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("dashboard")]  # one worker: the sweep is trained once


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of four tiny jobs."""
    cwd = tmp_path_factory.mktemp("sweep")
    outputs = (cwd / "out", cwd / "err")
    done = forked.run("flowdiff.train", ["--multirun", *SWEEP, *SMALL], cwd, environment(), outputs, timeout=600)
    assert done.returncode == 0, done.stderr
    (folder,) = cwd.glob("multirun/*/*/*")
    return folder


@pytest.fixture(scope="module")
def url(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A TensorBoard that has read all of it."""
    with browser.tensorboard(sweep, tmp_path_factory.mktemp("board")) as address:
        browser.until(lambda: sorted(asked(f"{address}data/runs")) == sorted([*RUNS, *VALIDATIONS]))
        browser.until(lambda: all("final/bits_per_dim" in scalars(address)[run] for run in RUNS))
        yield address


def asked(address: str, **content: Any) -> Any:
    """What TensorBoard answers."""
    data = json.dumps(content).encode() if content else None
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"} if content else {})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def scalars(address: str) -> Any:
    return asked(f"{address}data/plugin/scalars/tags")


def test_tags_are_few_groups_and_the_same_in_each_run(url: str) -> None:
    tags = scalars(url)
    assert sorted(tags) == sorted([*RUNS, *VALIDATIONS])
    for alike, groups in ((RUNS, {"train", "final"}), (VALIDATIONS, {"val"})):
        assert all(set(tags[run]) == set(tags[alike[0]]) for run in alike)
        assert {tag.partition("/")[0] for tag in tags[alike[0]]} == groups
    pictures = asked(f"{url}data/plugin/images/tags")
    assert {run: set(own) for run, own in pictures.items()} == {
        run: {"images/samples", "images/denoising"} for run in RUNS
    }
    shown = asked(f"{url}data/plugin/text/tags")
    assert all({"config/text_summary", "overrides/text_summary"} <= set(shown[run]) for run in RUNS)


def test_hparams_are_the_swept_keys_and_the_main_ones_with_values(url: str) -> None:
    found = asked(f"{url}data/plugin/hparams/experiment", experimentName="", includeMetrics=True)
    columns = {column["name"]: column for column in found["hparamInfos"]}
    assert set(columns) == set(tensorboard.MAIN)
    assert {name for name, column in columns.items() if column.get("differs")} == {"flow.n_flows", "activation"}
    assert columns["flow.n_flows"]["domainDiscrete"] == [1, 2]
    assert columns["activation"]["domainDiscrete"] == ["elu", "tanh"]
    assert "unet" in columns["denoiser"]["domainDiscrete"] and columns["lr"]["domainInterval"]["maxValue"] == 1
    states = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
    rows = asked(
        f"{url}data/plugin/hparams/session_groups",
        experimentName="",
        allowedStatuses=states,
        colParams=[],
        startIndex=0,
        sliceSize=99,
    )["sessionGroups"]
    assert [row["name"] for row in rows] == RUNS
    assert [row["hparams"]["activation"] for row in rows] == ["elu", "tanh"] * 2
    assert [row["hparams"]["flow.n_flows"] for row in rows] == [1, 1, 2, 2]
    for row in rows:
        assert row["hparams"]["flow"] == "coupling" and row["hparams"]["seed"] == 3
        assert [session["status"] for session in row["sessions"]] == ["STATUS_SUCCESS"]
        values = {value["name"]["tag"]: value["value"] for value in row["metricValues"]}
        assert list(values) == ["final/bits_per_dim", "val/loss", "val/bits_per_dim"]
        assert 2 < values["final/bits_per_dim"] < 5


def test_the_layouts_merge_and_the_overview_is_first(url: str) -> None:
    layout = asked(f"{url}data/plugin/custom_scalars/layout")
    assert [category["title"] for category in layout["category"]] == ["overview", "loss by sigma", "optimisation"]
    assert [len(category["chart"]) for category in layout["category"]] == [3, 6, 3]
    known = {tag for run in (RUNS[0], VALIDATIONS[0]) for tag in scalars(url)[run]}
    charts = [chart for category in layout["category"] for chart in category["chart"]]
    tags = {tag.strip("^$") for chart in charts for tag in chart["multiline"]["tag"]}
    drawn = {tag for tag in tags if "by_sigma" not in tag}
    assert drawn <= known and tags & known > drawn, "a bucket may be empty in four steps"


def test_all_pages_in_a_browser(url: str) -> None:
    reason = browser.missing()
    if reason:
        pytest.skip(reason)
    with browser.chromium() as driver:

        def opened(page: str, *words: str) -> str:
            driver.get("about:blank")  # else only the fragment changes
            driver.get(f"{url}#{page}")
            return browser.wait_for_text(driver, *words)

        opened("timeseries", *RUNS, "final", "images", "train", "val")
        opened("scalars", *RUNS, "final", "train", "val")
        opened("images", *RUNS, "images/denoising", "images/samples")
        browser.until(lambda: len(browser.images(driver)) >= 4)
        opened("text", *RUNS, "n_flows: 1", "_target_: flowdiff.flows.CouplingFlow")
        charts = opened("custom_scalars", *RUNS, "overview", "loss by sigma", "optimisation", "images per second")
        lines = charts.splitlines()
        assert lines.index("overview") < lines.index("bits per dimension") < lines.index("loss by sigma")
        table = opened("hparams", *RUNS, "TABLE VIEW", "final/bits_per_dim").splitlines()
        for run in RUNS:  # the name in the table, then the values
            cells = table[len(table) - table[::-1].index(run) :][:6]  # the first metric is the final one
            n, activation = run[len("0/n_flows-")], run.rpartition("-")[2]
            assert cells[:2] == [activation, f"{n}.0000"], cells
            assert 2 < float(cells[-1]) < 5, cells


def events_of(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def scalar_tags(folder: Path) -> list[str]:
    """Of the run in `folder`, with those of its validations."""
    boards = (folder / "run" / "tensorboard", folder / "run" / "tensorboard" / "val")
    return [tag for board in boards for tag in events_of(board).Tags()["scalars"]]


def text_of(events: EventAccumulator, tag: str) -> str:
    (found,) = events.Tensors(f"{tag}/text_summary")
    return found.tensor_proto.string_val[0].decode()


def test_a_run_that_dies_has_its_row(config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("callbacks=minimal", "logger=tensorboard", "trainer.max_steps=2", "trainer.limit_val_batches=1")
    cfg = config(*words, "metrics=[bits_per_dim,denoising,fd]")

    def dies(*args: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(run.Run, "finish", dies)
        train(cfg, list(words))
    events = events_of(tmp_path / "run" / "tensorboard")
    start = metadata.parse_session_start_info_plugin_data(
        events.summary_metadata[metadata.SESSION_START_INFO_TAG].plugin_data.content
    )
    assert start.hparams["flow.n_flows"].number_value == 2 and set(start.hparams) == set(tensorboard.MAIN)
    content = events.summary_metadata[metadata.EXPERIMENT_TAG].plugin_data.content
    tags = [column.name.tag for column in metadata.parse_experiment_plugin_data(content).metric_infos]
    assert tags[:3] == ["final/bits_per_dim", "final/denoising_ratio/1", "final/fd_mlp_digits"]
    assert set(tags[3:]) <= set(scalar_tags(tmp_path)) and "epoch" not in scalar_tags(tmp_path)
    assert metadata.SESSION_END_INFO_TAG not in events.summary_metadata and "hp_metric" not in scalar_tags(tmp_path)
    assert text_of(events, "overrides").split() == list(words)
    shown = text_of(events, "config")
    assert OmegaConf.create(shown.removeprefix("```yaml\n").removesuffix("```")).trainer.max_steps == 2


def test_a_logger_goes_on_in_the_folder_of_earlier_events(tmp_path: Path) -> None:
    assert Path(TensorBoardLogger(str(tmp_path)).log_dir) == tmp_path / "tensorboard"
    (tmp_path / "seed-1").mkdir()
    (tmp_path / "seed-1" / "events.out.tfevents.1").touch()
    assert Path(TensorBoardLogger(str(tmp_path)).log_dir) == tmp_path / "seed-1"


def test_names_tell_what_is_swept() -> None:
    assert run_name({"flow.n_flows": "1", "activation": "elu", "lr": "1e-3"}) == "n_flows-1_activation-elu_lr-1e-3"
    assert run_name({"flow.width": "8", "denoiser.width": "4"}) == "flow.width-8_denoiser.width-4"
    awkward = run_name({"metrics": "[fd,toy]", "ckpt_path": "'a b/c=" + "d" * 300 + "'", "callbacks@x": "{a:1}"})
    assert awkward.startswith("metrics-fd-toy_ckpt_path-") and awkward.endswith("_callbacks-x-a-1")
    assert not set(awkward) & set("=,[]/ ") and len(awkward) < 200
    words = ["a=1,2", "seed=range(0,3)", "lr=1e-3", "b=interval(0,1)", "+c=choice(x,y)", "activation=glob(*)"]
    assert list_swept(words) == {
        "a": ["1", "2"],
        "seed": ["0", "1", "2"],
        "b": [],
        "c": ["x", "y"],
        "activation": [],
    }


def test_an_experiments_own_sweep_is_known(tmp_path: Path) -> None:
    words = ["experiment=ablation/n_flows", "flow.n_flows=3", "seed=1", "hydra.sweep.dir=sweep"]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("config", overrides=words, return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.mode, cfg.hydra.runtime.cwd = RunMode.MULTIRUN, str(tmp_path)
    try:
        HydraConfig.instance().set_config(cfg)
        own = read_command_line().swept
        (tmp_path / "sweep").mkdir()
        task = {"hydra": {"overrides": {"task": ["experiment=ablation/n_flows", "lr=1,2"]}}}
        OmegaConf.save(OmegaConf.create(task), tmp_path / "sweep" / "multirun.yaml")
        known = read_command_line().swept
    finally:
        HydraConfig.instance().cfg = None
    assert known == {"flow.n_flows": ["1", "2", "3", "5", "10"], "seed": ["0", "1", "2"], "lr": ["1", "2"]}
    assert own == {key: values for key, values in known.items() if key != "lr"}
    assert not read_command_line().swept


def test_choices_are_called_by_their_files(config: Compose) -> None:
    plain = to_plain(config("flow=spline"))
    made = {"flow": "spline", "loss": "mixture", "augment": "affine", "sampler": "mine"}
    row = tensorboard.hparams(plain, CommandLine(choices=made))
    assert row["flow"] == "spline" and row["augment"] == "affine" and row["activation"] == "softplus"
    assert row["sampler"] == "ancestral", "a choice whose file names another class"
    unknown = tensorboard.hparams(plain, CommandLine())
    assert unknown == row | {"flow": "coupling_flow"}, "which of its files it was, nobody says"
    plain["loss"] = {"_target_": "flowdiff.objectives.Denoising"}  # as `building.fall_back` has it
    plain["augment"] = {"_target_": "flowdiff.objectives.Augmentation", "_partial_": True}
    plain["dataset"] = {**plain["dataset"], "_target_": "elsewhere.OtherData"}
    row = tensorboard.hparams(plain, CommandLine(choices=made))
    assert (row["loss"], row["augment"], row["dataset"]) == ("denoising", "none", "other_data")


def test_the_newest_sweep_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FlowdiffError, match="no sweep below multirun/ and no run below outputs/"):
        dashboard.find_newest()
    times = ("2026-01-02/09-00-00.0", "2026-01-01/23-00-00.0", "2026-01-03/01-00-00.0")
    for root, names in (("outputs", ("b",)), ("multirun", ("b", "a"))):
        for name, time in zip(names, times, strict=False):
            folder = Path(root, name, time, "0", "seed-1")
            folder.mkdir(parents=True)
            (folder / "events.out.tfevents.1").touch()
        assert dashboard.find_newest() == Path(root, "b", times[0])
    Path("multirun", "c", times[2]).mkdir(parents=True)
    assert dashboard.find_newest() == Path("multirun", "b", times[0]), "the last one has written nothing"
    ran: list[list[str]] = []
    monkeypatch.setattr(dashboard.os, "execv", lambda program, words: ran.append(words))
    dashboard.main(["--", "--port", "6007"])
    dashboard.main(["outputs"])
    assert ran[0][1:] == ["-m", "tensorboard.main", "--logdir", f"multirun/b/{times[0]}", "--port", "6007"]
    assert ran[1][3:] == ["--logdir", "outputs"]
    with pytest.raises(SystemExit, match="nowhere: no such folder"):
        dashboard.main(["nowhere"])


def test_make_dashboard() -> None:
    words = ["make", "--no-print-directory", "--dry-run", "dashboard", "LOGDIR=outputs", "ARGS=--port 6007"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == ".venv/bin/python -m flowdiff.dashboard outputs -- --port 6007"


def experiment_of(events: Any) -> Any:
    """What HParams is told of a run."""
    content = events.summary_metadata[metadata.EXPERIMENT_TAG].plugin_data.content
    return metadata.parse_experiment_plugin_data(content)


@pytest.mark.parametrize(
    "words",
    [
        (  # no likelihood, no level 1 among those measured, a metric that doesn't fit
            *("denoiser=unet", "denoiser.width=8", "denoiser.multipliers=[1]", "loss=denoising"),
            *("metrics=[bits_per_dim,denoising,recognised,toy]", "metrics.denoising.sigmas=[0.3,3]"),
            *("metrics.denoising.num_images=50", "metrics.recognised.num_samples=20"),
        ),
        ("experiment=toy", "dataset.num_train=512", "dataset.num_test=64", "metrics=[toy,denoising,fd]"),
    ],
)
def test_every_column_of_hparams_is_filled(words: tuple[str, ...], config: Compose, tmp_path: Path) -> None:
    short = ("callbacks=minimal", "logger=tensorboard", "trainer.max_steps=2", "trainer.val_check_interval=2")
    kept = [word for word in TINY if words[0] != "denoiser=unet" or not word.startswith("flow.")]
    train(config(*kept, *short, *words, tiny=False), list(words))
    events = events_of(tmp_path / "run" / "tensorboard")
    experiment = experiment_of(events)
    tags = [column.name.tag for column in experiment.metric_infos]
    assert set(tags) <= set(scalar_tags(tmp_path)) and len(tags) == len(set(tags))
    settings = {column.name for column in experiment.hparam_infos}
    if words[0] == "denoiser=unet":
        assert tags == ["final/denoising_ratio/0.3", "final/recognised", "val/loss"]
        assert not settings & {"flow", "flow.n_flows", "activation", "precondition"} and "conditioning" in settings
    else:
        assert tags == ["final/log_likelihood_gap", "final/denoising_ratio/1", "val/loss"]
        assert {"flow", "activation"} <= settings


def test_a_run_that_measures_nothing_has_no_final_columns(config: Compose, tmp_path: Path) -> None:
    words = ("metrics=[bits_per_dim]", "evaluate=null", "trainer.limit_val_batches=0", "trainer.max_steps=1")
    train(config(*words, "callbacks=minimal", "logger=tensorboard"))
    assert not experiment_of(events_of(tmp_path / "run" / "tensorboard")).metric_infos
