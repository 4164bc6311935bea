"""hydra/sweeper=optuna: what a job gives back, jobs that diverge, and a search that goes on."""

import math
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from flowdiff.errors import ConfigError
from flowdiff.metrics.base import Metric
from flowdiff.model.vocabulary import config_dir
from flowdiff.quantities import Quantity
from flowdiff.runs import job_folders, search
from tests.helpers.command_lines import TINY

WORDS = (
    *("--multirun", "hydra/sweeper=optuna", "hydra.sweeper.n_jobs=1", "hydra.sweeper.sampler.seed=0"),
    *(*TINY, "callbacks=minimal", "logger=none", "metrics=[bits_per_dim]"),
    *("trainer.max_steps=4", "trainer.val_check_interval=2"),
)
MINIMISE = OmegaConf.create({"direction": "minimize"})
MAXIMISE = OmegaConf.create({"direction": "maximize"})

Command = Callable[..., CompletedProcess[str]]


def test_the_objective_is_a_metric() -> None:
    assert search.objective("recognised", {"recognised": 0.5, "fd": 2.0}, MAXIMISE) == 0.5
    with pytest.raises(ConfigError, match="optimized_metric=fid: was not measured; must be one of fd, recognised"):
        search.objective("fid", {"recognised": 0.5, "fd": 2.0}, MINIMISE)
    assert search.objective("fd", {"fd": None}, MINIMISE) == math.inf
    assert search.objective("fd", {"fd": math.nan}, MAXIMISE) == -math.inf
    assert search.worst_value(SimpleNamespace(get=lambda *_: SimpleNamespace(name="maximize"))) == -math.inf


def test_nobody_searches_for_the_worst() -> None:
    """The metric says which way is better, one from elsewhere too; of one that says nothing both are allowed."""
    own = {"mine": {"_target_": f"{__name__}.Mine"}}
    for name, right, wrong in (
        ("bits_per_dim", MINIMISE, MAXIMISE),
        ("fd_mlp_digits", MINIMISE, MAXIMISE),
        ("recognised", MAXIMISE, MINIMISE),
        ("recognised", MAXIMISE, OmegaConf.create({})),
        ("log_likelihood", MAXIMISE, MINIMISE),
        ("mine/3", MAXIMISE, MINIMISE),
    ):
        search.check(name, own, right)
        direction = right.direction
        with pytest.raises(ConfigError, match="is better of optimized_metric=" + name) as caught:
            search.check(name, own, wrong)
        assert str(caught.value).endswith(f"hydra.sweeper.direction={direction}")
    for direction in (MINIMISE, MAXIMISE):
        search.check("parameters", own, direction)
        search.check("nobody", own, direction)


class Mine(Metric):
    """Of somebody else's."""

    quantities = (Quantity("mine/*", better="higher"),)


def test_a_search_in_the_wrong_direction_trains_nothing(command: Command, tmp_path: Path) -> None:
    direction = "hydra.sweeper.direction=maximize"
    done = command("train", *WORDS, "lr=interval(1e-4,1e-3)", "hydra.sweeper.n_trials=3", direction)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "hydra.sweeper.direction=maximize: lower is better of optimized_metric=bits_per_dim" in done.stderr
    assert not list(tmp_path.rglob("*.ckpt")) and len(list(tmp_path.rglob("status.json"))) == 1


def test_a_diverged_job_counts_as_bad_and_the_search_goes_on(command: Command, tmp_path: Path) -> None:
    """A rate of 1e30 makes the loss NaN."""
    done = command("train", *WORDS, "lr=choice(1e-3,1e30)", "hydra.sweeper.n_trials=4", "name=found")
    (folder,) = tmp_path.glob("multirun/found/*/*")
    jobs = job_folders.collect(folder)
    assert {job.overrides["lr"] for job in jobs} == {"0.001", "1e+30"}, done.stdout
    assert len(jobs) == 4, done.stderr
    for job in jobs:
        assert job.status == ("done" if job.overrides["lr"] == "0.001" else "failed")
        assert bool(job.error) == (job.status == "failed") and "Traceback" not in done.stderr
    best = OmegaConf.load(folder / "optimization_results.yaml")
    assert best.best_params == {"lr": 0.001}
    assert best.best_value == min(value for job in jobs if (value := job.metrics.get("bits_per_dim")) is not None)
    assert done.returncode == 1, "a job has failed"

    before = {job.folder: job.seconds for job in jobs if job.status == "done"}
    again = command(
        "train", *WORDS, "lr=choice(1e-3,1e30)", "hydra.sweeper.n_trials=5", "name=found", "resume_sweep=true"
    )
    jobs = job_folders.collect(folder)
    assert len(jobs) == 5, again.stderr
    assert {job.folder: job.seconds for job in jobs if job.folder in before} == before, (
        "what was done is not done again"
    )


def test_a_mistake_ends_the_search(command: Command, tmp_path: Path) -> None:
    done = command("train", *WORDS, "lr=interval(1e-4,1e-3)", "hydra.sweeper.n_trials=3", "optimized_metric=fid")
    assert done.returncode == 1
    assert "optimized_metric=fid: was not measured; must be one of bits_per_dim" in done.stderr
    assert len(list(tmp_path.glob("multirun/*/*/*/*/status.json"))) == 1
    assert "Traceback" not in done.stderr


def test_the_documented_search_composes() -> None:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("config", overrides=["experiment=search"], return_hydra_config=True)
        assert search.searches(config.hydra) and config.hydra.sweeper.sampler.seed == 0
        for key in config.hydra.sweeper.params:
            assert OmegaConf.select(config, key) is not None
