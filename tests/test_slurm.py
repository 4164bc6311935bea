"""Sweeps through submitit: on a real SLURM of one node with pre-emption, and in local processes.

On SLURM two jobs with the same seed are asked to make room in their middle, one by SIGUSR1, one by a job of a higher
partition (SIGTERM); both are queued again, go on in their own folders and end as a run that nobody stopped.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import slurm
from conftest import TINY, environment, start, wait_for

from flowdiff import cluster

WORDS = (
    *(word for word in TINY if not word.startswith("callbacks.checkpoints")),
    *("callbacks=minimal", "callbacks.checkpoints.every_n_steps=50", "logger=csv", "metrics=[denoising]"),
)
LONG = (*WORDS, "trainer.max_steps=600", "trainer.val_check_interval=300", "trainer.limit_val_batches=1")
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def one_node(monkeypatch: pytest.MonkeyPatch) -> Iterator[slurm.Cluster]:
    if slurm.missing():
        pytest.skip(f"SLURM is not installed here: no {', '.join(slurm.missing())} (Debian: slurm-wlm, munge)")
    with slurm.cluster(cpus=3) as running:
        for key, value in running.env.items():
            monkeypatch.setenv(key, value)
        yield running


def state(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / "status.json").read_text())["status"])
    except FileNotFoundError:
        return None


def metrics(folder: Path) -> dict[str, float]:
    return {name: entry["value"] for name, entry in json.loads((folder / "metrics.json").read_text()).items()}


def output(sweep: Path, job: str) -> str:
    return "".join(file.read_text() for file in sorted((sweep / ".submitit" / job).glob("*_log.*")))


def test_preempted_jobs_go_on_in_their_own_folders(one_node: slurm.Cluster, command: Command, tmp_path: Path) -> None:
    launcher = ("--multirun", "hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1")
    sweep, other = tmp_path / "sweep", tmp_path / "other"
    process = start(tmp_path, *launcher, *LONG, "seed=0,0", f"hydra.sweep.dir={sweep}")
    cancelled = start(tmp_path, *launcher, *LONG, "seed=0", f"hydra.sweep.dir={other}")
    try:
        jobs = [sweep / "0", sweep / "1"]
        wait_for(lambda: all((job / "checkpoints" / "last.ckpt").exists() for job in (*jobs, other / "0")), process)
        (first,) = {file.name.split("_")[0] for file in (sweep / ".submitit").glob("*_0")}
        (single,) = [file.name for file in (other / ".submitit").glob("*")]
        one_node.call("scancel", "--signal=USR1", f"{first}_0")
        one_node.call("scancel", single)
        one_node.call("sbatch", "--partition=high", "--ntasks=3", "--output=/dev/null", "--wrap=sleep 1")
        wait_for(lambda: [state(job) for job in jobs] == ["interrupted"] * 2, process, 60)
        whole = command("train", *LONG, "seed=0", f"hydra.run.dir={tmp_path / 'whole'}")
        assert whole.returncode == 0, whole.stderr

        stdout, stderr = process.communicate(timeout=240)
        assert process.returncode == 0, (stdout, stderr, output(sweep, f"{first}_0"), output(sweep, f"{first}_1"))
        for number, (job, name) in enumerate(zip(jobs, ("SIGUSR1", "SIGTERM"), strict=True)):
            said = output(sweep, f"{first}_{number}")
            assert state(job) == "done" and json.loads((job / "status.json").read_text())["job_id"] == f"{first}_{number}"
            assert f"{name}: saving after this step" in said and "stopped at step" in said, said
            assert f"job {number}: interrupted, goes on from {job / 'checkpoints' / 'last.ckpt'}" in said, said
            assert "Restarts=1 " in one_node.call("scontrol", "show", "job", f"{first}_{number}")
            assert metrics(job) == metrics(tmp_path / "whole")
        assert sorted(path.name for path in sweep.iterdir()) == [".submitit", "0", "1", "multirun.yaml"]

        assert state(other / "0") == "interrupted" and "SIGTERM: saving after this step" in output(other, single)
        assert "Restarts=0 " in one_node.call("scontrol", "show", "job", single), "the user's scancel ends a job"
    finally:
        for one in (process, cancelled):
            if one.poll() is None:
                os.killpg(one.pid, signal.SIGKILL)
            one.communicate()
