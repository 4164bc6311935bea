"""A sweep that was killed goes on by the same command and ends with the table of one that was not."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import joblib
import pytest
from hydra import compose, initialize_config_dir

from flowdiff.commands import collect, sweeps
from flowdiff.errors import ConfigError, FlowdiffError
from flowdiff.model.vocabulary import config_dir
from flowdiff.runs import job_folders
from flowdiff.runs.sweeps import find_state
from tests.helpers.command_lines import BARE, TINY, Command, environment, start, wait_for

SWEEP = (
    *("--multirun", "flow.n_flows=1,2", "seed=0,1", "trainer.max_steps=20", "trainer.val_check_interval=10"),
    *(word for word in TINY if not word.startswith(("flow.n_flows", "callbacks.checkpoints"))),
    *("callbacks=minimal", "callbacks.checkpoints.every_n_steps=5", "metrics=[denoising]"),
)


def table(folder: Path) -> list[dict[str, str]]:
    """The report's rows without what depends on the clock."""
    assert collect.main([str(folder), "--samples", "0"]) == 0
    with (folder / "report" / "results.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in ("seconds", "resume_sweep")} for row in csv.DictReader(file)]


def test_a_killed_sweep_goes_on_by_the_same_command(command: Command, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    done = command("train", *SWEEP, cwd=whole)
    assert done.returncode == 0, done.stderr
    process = start(killed, *SWEEP)
    wait_for(lambda: list(killed.glob("multirun/*/*/*/1/checkpoints/last.ckpt")), process)  # in the second job's middle
    process.kill()
    process.communicate()
    (folder,) = killed.glob("multirun/*/*/*")
    assert json.loads((folder / "0" / "status.json").read_text())["status"] == "done"
    assert json.loads((folder / "1" / "status.json").read_text())["status"] == "running"
    before = (folder / "0" / "checkpoints" / "last.ckpt").stat().st_mtime_ns

    again = command("train", *SWEEP, "resume_sweep=true", cwd=killed)
    assert again.returncode == 0, again.stderr
    assert list(killed.glob("multirun/*/*/*")) == [folder], "it goes on in its own folder"
    assert "job 0: done" in again.stdout and "job 1: killed, goes on from" in again.stdout
    assert (folder / "0" / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before
    (reference,) = whole.glob("multirun/*/*/*")
    boards = {events.parent for events in (folder / "1").rglob("events.out.tfevents*")}
    own = folder / "1" / "n_flows-1_seed-1"
    assert boards == {own, own / "val"}, "it goes on in its own dashboard"
    assert table(folder) == table(reference)


def test_only_sweeps_can_be_resumed(command: Command, tmp_path: Path) -> None:
    done = command("train", "resume_sweep=true", "trainer.max_steps=1")
    assert done.returncode == 1
    assert done.stderr.strip().startswith("resume_sweep=true: is for --multirun")


def status(folder: Path, state: str, *words: str, pid: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"status": state, "overrides": list(words), "pid": pid or 2**22 - 1, "host": os.uname().nodename}
    (folder / "status.json").write_text(json.dumps(content))


def test_where_a_job_stands(tmp_path: Path) -> None:
    words = ["seed=1", "resume_sweep=true"]
    assert find_state(tmp_path / "new", words) == ("not started", None)
    last = tmp_path / "checkpoints" / "last.ckpt"
    status(tmp_path, "running", "seed=1")  # by a process that is gone
    assert find_state(tmp_path, words) == ("killed", None)
    last.parent.mkdir()
    last.touch()
    for state, shown in (("running", "killed"), ("interrupted", "interrupted"), ("failed", "failed")):
        status(tmp_path, state, "seed=1")
        assert find_state(tmp_path, words) == (shown, last)
    status(tmp_path, "done", "seed=1")
    assert find_state(tmp_path, words) == ("done", None)
    status(tmp_path, "running", "seed=1", pid=os.getpid())
    with pytest.raises(FlowdiffError, match="still running"):
        find_state(tmp_path, words)
    with pytest.raises(FlowdiffError, match=r"holds another job \(seed=1\)"):
        find_state(tmp_path, ["seed=2"])


def test_a_job_that_still_runs_is_left_alone(command: Command, tmp_path: Path) -> None:
    words = ["seed=0", *TINY, *BARE, "trainer.max_steps=1", "trainer.limit_val_batches=1"]
    status(tmp_path / "sweep" / "0", "running", *words, pid=os.getpid())
    before = (tmp_path / "sweep" / "0" / "status.json").read_text()
    done = command("train", "--multirun", *words, "hydra.sweep.dir=sweep", "resume_sweep=true")
    assert done.returncode == 1 and "still running" in done.stderr
    assert (tmp_path / "sweep" / "0" / "status.json").read_text() == before


def test_only_with_multirun() -> None:
    with pytest.raises(ConfigError, match="resume_sweep=true"):
        sweeps.prepare(["resume_sweep=true"], ["train"], "config")
    arguments = ["train", "seed=1,2"]
    sweeps.prepare(["seed=1,2"], arguments, "config")
    assert arguments == ["train", "seed=1,2"]


ABLATIONS = sorted(file.stem for file in (config_dir() / "experiment" / "ablation").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations_compose_and_sweep_over_three_seeds(name: str) -> None:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        words = [f"experiment=ablation/{name}"]
        config = compose("config", overrides=words, return_hydra_config=True)
        params = dict(config.hydra.sweeper.params)
        assert params.pop("seed") == "0,1,2" and params
        assert config.name == f"ablation_{name}" and config.augment._target_.endswith("Affine"), "digits is its base"
        for key, values in params.items():
            for value in str(values).split(","):
                compose("config", overrides=[*words, f"{key}={value}", "dataset=mnist"])


SCRIPT = """
import gc, torch
from flowdiff.commands import cli, train

def alive():
    tensors = [o.untyped_storage() for o in gc.get_objects() if torch.is_tensor(o)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in tensors}.values())

def task(cfg):
    on_gpu = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    print("measured:", alive(), on_gpu, torch.get_num_threads(), flush=True)
    return train.train(cfg)

if __name__ == "__main__":
    cli.run(task)
"""


def measured(tmp_path: Path, env: dict[str, str], *words: str) -> list[list[int]]:
    """Bytes of tensors alive, on the GPU too, and threads, at the start of each job of a sweep of three equal ones.

    Jobs share no random numbers, figures or loggers, one after the other or side by side: their results are equal.
    """
    (tmp_path / "measured.py").write_text(SCRIPT)
    small = ("trainer.max_steps=6", "trainer.val_check_interval=3")
    small += ("metrics=[denoising,fd]", "metrics.fd.num_samples=40", "seed=0,0,0")
    call = [sys.executable, "measured.py", "--multirun", *small, *TINY, *words]
    done = subprocess.run(call, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("measured:")]
    assert len(found) == 3
    (folder,) = tmp_path.glob("multirun/*/*/*")
    assert_equal(job_folders.collect(folder))
    return [[int(number) for number in numbers] for numbers in found]


def assert_equal(jobs: Sequence[job_folders.Job]) -> None:
    assert [job.status for job in jobs] == ["done"] * 3
    assert jobs[0].metrics and all(job.metrics == jobs[0].metrics for job in jobs)

    def logged(job: job_folders.Job) -> list[dict[str, str]]:
        with (job.folder / "csv" / "metrics.csv").open(newline="") as file:
            return [{k: v for k, v in row.items() if "per_second" not in k} for row in csv.DictReader(file)]

    assert logged(jobs[0]) and all(logged(job) == logged(jobs[0]) for job in jobs)


@pytest.mark.slow
def test_memory_is_released_between_equal_jobs(tmp_path: Path) -> None:
    first, _, third = measured(tmp_path, environment())
    assert third[0] <= first[0] + 1024 and third[1] == first[1]


@pytest.mark.slow
def test_joblib_divides_the_threads_between_equal_jobs(tmp_path: Path) -> None:
    env = {key: value for key, value in environment().items() if key != "OMP_NUM_THREADS"}
    threads = [job[2] for job in measured(tmp_path, env, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")]
    assert threads == [max(1, joblib.cpu_count() // 2)] * 3
