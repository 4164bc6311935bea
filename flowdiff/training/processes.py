"""The processes of one run on several devices, which Lightning starts by the command line once more for each.

A job of a sweep has a command line of its own for that: without `--multirun`, with the job's own words, in the job's
own folder. After the run none of its processes is left, and nothing in the environment that the next job of the sweep
would take for its own.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch import Trainer
from omegaconf import read_write

from flowdiff.errors import ConfigError
from flowdiff.runs.words import assignment, typed_words

SECONDS = 30.0  # that the other processes have to end by themselves
WITH_VALUE = ("--config-dir", "-cd", "--config-name", "-cn")
NOT_THEIRS = ("hydra.", "hydra/", "resume_sweep=", "ckpt_path=", "resume=", "run_dir=")


def check(trainer: Trainer) -> None:
    """Refuse several processes in a job that Hydra runs in a process of its own.

    Raises:
        ConfigError: the sweep has another launcher than Hydra's own, or SLURM's, which starts the processes itself.
    """
    if trainer.world_size == 1 or not _in_sweep():
        return
    launcher = str(HydraConfig.get().launcher.get("_target_")).rpartition(".")[2]
    if launcher not in ("BasicLauncher", "SlurmLauncher"):
        raise ConfigError(
            "trainer.devices",
            trainer.num_devices,
            "jobs of several processes run one after the other: leave out hydra/launcher=, or take trainer.devices=1",
        )


@contextlib.contextmanager
def own(trainer: Trainer, config: Mapping[str, Any]) -> Iterator[None]:
    """Within it Lightning may start the other processes of a run; after it they have ended.

    Args:
        trainer: the run's.
        config: the run's resolved configuration.
    """
    environment, threads = dict(os.environ), torch.get_num_threads()
    launcher: Any = trainer.strategy.launcher
    try:
        with _as_single_run(config):
            yield
    finally:
        started: list[subprocess.Popen[bytes]] = getattr(launcher, "procs", [])
        if started:
            _end(started)
            for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS"):
                os.environ.pop(name, None)
                if name in environment:
                    os.environ[name] = environment[name]
            torch.set_num_threads(threads)


def _end(started: list[subprocess.Popen[bytes]]) -> None:
    """Wait for the processes, and end those that wait for one that has failed."""
    failed = sys.exc_info()[0] is not None
    for process in started:
        try:
            process.wait(SECONDS / 10 if failed else SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    started.clear()  # Lightning watches this list, and would kill this process for one of them that failed
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _in_sweep() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


@contextlib.contextmanager
def _as_single_run(config: Mapping[str, Any]) -> Iterator[None]:
    """Within it, the command line of a sweep's job is that of a single run in the job's folder."""
    if not _in_sweep():
        yield
        return
    job, arguments = HydraConfig.get(), sys.argv
    run = HydraConfig.instance().cfg.hydra.run  # type: ignore[union-attr]
    options = []
    for option, value in zip(arguments[1:], [*arguments[2:], ""], strict=True):
        if option.startswith("-") and option not in ("-m", "--multirun"):
            options += [option, value] if option in WITH_VALUE else [option]
    words = [word for word in typed_words() if not word.lstrip("+").startswith(NOT_THEIRS)]
    words += [assignment("ckpt_path", config["ckpt_path"])] if config.get("ckpt_path") else []
    before = run.dir
    sys.argv = [arguments[0], *options, *words]
    with read_write(run):
        run.dir = str(Path(job.runtime.output_dir).absolute())
    try:
        yield
    finally:
        sys.argv = arguments
        with read_write(run):
            run.dir = before
