"""Sweeps through submitit: on a real SLURM of one node with pre-emption, in local processes, and what is decided there.

On SLURM two jobs with the same seed are asked to make room in their middle, one by SIGUSR1, one by a job of a higher
partition (SIGTERM); both are queued again, go on in their own folders and end as a run that nobody stopped.
"""

import json
import os
import signal
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch

from flowdiff.commands import sweeps
from flowdiff.runs import slurm
from flowdiff.runs.interrupts import Interrupted, Interrupts
from flowdiff.runs.sweeps import find_state
from tests.helpers import fake_slurm
from tests.helpers.command_lines import TINY, Command, start, wait_for
from tests.helpers.forked import Forked
from tests.helpers.states import states

LONG = (  # a checkpoint at each step makes it last for some seconds
    *(word for word in TINY if not word.startswith("callbacks.")),
    *("callbacks=minimal", "callbacks.checkpoints.every_n_steps=1", "logger=csv", "metrics=[denoising]"),
    *("trainer.max_steps=250", "trainer.val_check_interval=125", "trainer.limit_val_batches=1"),
)


@pytest.fixture
def one_node(monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_slurm.Cluster]:
    if fake_slurm.missing():
        pytest.skip(f"SLURM is not installed here: no {', '.join(fake_slurm.missing())} (Debian: slurm-wlm, munge)")
    forkserver.ensure_running()  # now: begun with the cluster's environment, it would end with the cluster's processes
    with fake_slurm.cluster(cpus=3) as running:
        for key, value in running.env.items():
            monkeypatch.setenv(key, value)
        yield running


def status(folder: Path) -> dict[str, str]:
    file = folder / "status.json"
    return dict(json.loads(file.read_text())) if file.exists() else {"status": "not started"}


def metrics(folder: Path) -> dict[str, float]:
    return {name: entry["value"] for name, entry in json.loads((folder / "metrics.json").read_text()).items()}


def last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def output(sweep: Path, job: str) -> str:
    return "".join(file.read_text() for file in sorted((sweep / ".submitit" / job).glob("*_log.*")))


def ended(process: Forked) -> None:
    if process.poll() is None:
        process.kill()
    process.communicate()


def test_preempted_jobs_go_on_in_their_own_folders(
    one_node: fake_slurm.Cluster, command: Command, tmp_path: Path
) -> None:
    launcher = ("--multirun", "hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1")
    sweep, other = tmp_path / "sweep", tmp_path / "other"
    process = start(tmp_path, *launcher, *LONG, "seed=0,0", f"hydra.sweep.dir={sweep}")
    cancelled = start(tmp_path, *launcher, *LONG, "seed=0", f"hydra.sweep.dir={other}")
    try:
        jobs = [sweep / "0", sweep / "1"]
        wait_for(lambda: all(last(job).exists() for job in (*jobs, other / "0")), process)
        ids, single = [str(status(job)["job_id"]) for job in jobs], str(status(other / "0")["job_id"])
        one_node.call("scancel", "--signal=USR1", ids[0])
        one_node.call("scancel", single)
        one_node.call("sbatch", "--partition=high", "--ntasks=3", "--output=/dev/null", "--wrap=sleep 1")
        wait_for(lambda: [status(job)["status"] for job in jobs] == ["interrupted"] * 2, process)
        whole = command("train", *LONG, "seed=0", f"hydra.run.dir={tmp_path / 'whole'}")
        assert whole.returncode == 0, whole.stderr

        stdout, stderr = process.communicate(timeout=240)
        assert process.returncode == 0, (stdout, stderr, *(output(sweep, name) for name in ids))
        for number, received in enumerate(("SIGUSR1", "SIGTERM")):
            job, said = jobs[number], output(sweep, ids[number])
            assert status(job)["status"] == "done" and status(job)["job_id"] == ids[number]
            assert f"{received}: saving after this step" in said and "stopped at step" in said, said
            assert f"job {number}: interrupted, goes on from {last(job)}" in said, said
            assert "Restarts=1 " in one_node.call("scontrol", "show", "job", ids[number])
            assert metrics(job) == metrics(tmp_path / "whole")
        assert sorted(path.name for path in sweep.iterdir()) == [".submitit", "0", "1", "multirun.yaml"]

        assert "SIGTERM: saving after this step" in output(other, single)
        assert status(other / "0")["status"] == "interrupted"
        assert "Restarts=0 " in one_node.call("scontrol", "show", "job", single), "scancel is not for a requeue"
    finally:
        ended(process)
        ended(cancelled)


@pytest.mark.slow
def test_two_tasks_of_a_job_are_one_run(one_node: fake_slurm.Cluster, command: Command, tmp_path: Path) -> None:
    """trainer=ddp with processes that SLURM has started ends as with those that Lightning starts."""
    words = (*TINY, "callbacks=minimal", "logger=csv", "metrics=[denoising]", "trainer=ddp", "trainer.max_steps=4")
    tasks = ("hydra.launcher.tasks_per_node=2", "hydra.launcher.cpus_per_task=1")
    launcher = ("--multirun", "hydra/launcher=submitit_slurm", *tasks, "seed=3", "hydra.sweep.dir=sweep")
    done = command("train", *launcher, *words, timeout=300)
    job = tmp_path / "sweep" / "0"
    assert done.returncode == 0, (done.stdout, done.stderr, output(job.parent, "*"))
    assert status(job)["status"] == "done"
    said = output(job.parent, str(status(job)["job_id"]))
    assert said.count("run folder") == 1 and "MEMBER: 2/2" in said, said
    plain = command("train", *words, "seed=3", "run_dir=plain")
    assert plain.returncode == 0, plain.stderr
    assert metrics(job) == metrics(tmp_path / "plain")
    one, two = (states(last(run))["state_dict"] for run in (job, tmp_path / "plain"))
    for name, value in two.items():  # type: ignore[attr-defined]
        torch.testing.assert_close(one[name], value, msg=name)  # type: ignore[index]


@pytest.mark.slow
def test_a_local_job_of_submitit_goes_on_as_well(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    words = ("--multirun", "hydra/launcher=submitit_local", "seed=0,0", f"hydra.sweep.dir={sweep}")
    process = start(tmp_path, *words, *LONG, "trainer.max_steps=50")
    try:
        wait_for(last(sweep / "1").exists, process)
        os.kill(int(status(sweep / "1")["pid"]), signal.SIGUSR2)
        stdout, stderr = process.communicate(timeout=240)
        assert process.returncode == 0, (stdout, stderr)
        assert [status(sweep / name)["status"] for name in "01"] == ["done", "done"]
        assert "job 1: interrupted, goes on from" in output(sweep, status(sweep / "1")["job_id"])
        assert metrics(sweep / "0") == metrics(sweep / "1")
    finally:
        ended(process)


def test_a_failed_job_is_told_where_the_sweep_was_started(command: Command, tmp_path: Path) -> None:
    done = command("train", "--multirun", "hydra/launcher=submitit_local", "lr=fast", "hydra.sweep.dir=sweep")
    assert done.returncode == 1 and "job 0: lr=fast: must be a number" in done.stderr, done.stderr
    assert status(tmp_path / "sweep" / "0")["status"] == "failed"


@pytest.fixture
def in_slurm(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for key, value in {"SUBMITIT_EXECUTOR": "slurm", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}.items():
        monkeypatch.setenv(key, value)
    return monkeypatch


def test_only_the_same_job_goes_on_without_being_asked(in_slurm: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content = {"status": "running", "overrides": ["seed=1"], "pid": os.getpid(), "host": os.uname().nodename}
    last(tmp_path).parent.mkdir()
    last(tmp_path).touch()
    assert not slurm.is_requeued(tmp_path)
    for job, expected in (("12_3", True), ("12_4", False), (None, False)):
        (tmp_path / "status.json").write_text(json.dumps(content | {"job_id": job}))
        assert slurm.is_requeued(tmp_path) is expected
    with pytest.raises(sweeps.OtherJob, match="still running"):
        find_state(tmp_path, ["seed=1"])
    (tmp_path / "status.json").write_text(json.dumps(content | {"job_id": "12_3"}))
    assert find_state(tmp_path, ["seed=1"]) == ("killed", last(tmp_path))
    in_slurm.delenv("SUBMITIT_EXECUTOR")
    assert slurm.job_id() is None and not slurm.is_requeued(tmp_path)


def test_what_is_queued_again(in_slurm: pytest.MonkeyPatch, tmp_path: Path) -> None:
    in_slurm.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    squeue = tmp_path / "squeue"
    for state, expected in (("RUNNING", True), ("SIGNALING", True), ("COMPLETING", False), ("", False)):
        squeue.write_text(f'#!/bin/sh\n[ "$2" = --jobs=12_3 ] && echo {state}\n')
        squeue.chmod(0o755)
        assert slurm.is_wanted_back(signal.SIGTERM) is expected
        assert slurm.is_wanted_back(signal.SIGUSR1) is expected
        assert not slurm.is_wanted_back(signal.SIGINT)
    in_slurm.setenv("SUBMITIT_EXECUTOR", "local")
    assert slurm.is_wanted_back(signal.SIGUSR2) and not slurm.is_wanted_back(signal.SIGTERM)


def test_schedulers_may_insist(in_slurm: pytest.MonkeyPatch) -> None:
    with Interrupts() as interrupts:
        interrupts.patient = True
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            signal.raise_signal(number)
        assert interrupts.received == signal.SIGUSR1
    with Interrupts():  # outside of the training
        with pytest.raises(Interrupted, match="SIGUSR2"):
            signal.raise_signal(signal.SIGUSR2)
        signal.raise_signal(signal.SIGTERM)
    in_slurm.delenv("SUBMITIT_EXECUTOR")
    with pytest.raises(Interrupted), Interrupts() as interrupts:
        interrupts.patient = True
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_a_job_uses_the_cpus_it_was_given(in_slurm: pytest.MonkeyPatch) -> None:
    in_slurm.setenv("SLURM_CPUS_PER_TASK", "3")
    in_slurm.setenv("OMP_NUM_THREADS", "5")
    slurm.use_given_cpus()
    assert os.environ["OMP_NUM_THREADS"] == "5"
    in_slurm.delenv("OMP_NUM_THREADS")
    slurm.use_given_cpus()
    assert os.environ["OMP_NUM_THREADS"] == "3"
