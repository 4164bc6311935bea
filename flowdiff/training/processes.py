"""The processes of one run on several devices, which Lightning starts by the command line once more for each.

A job of a sweep has a command line of its own for that: without `--multirun`, with the job's own words, in the job's
own folder. After the run none of its processes is left, and nothing in the environment that the next job of the sweep
would take for its own.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Trainer

from flowdiff.errors import ConfigError
from flowdiff.runs.command_line import CommandLine

SECONDS = 30.0  # that the other processes have to end by themselves


def check(trainer: Trainer, command_line: CommandLine) -> None:
    """Refuse several processes in a job that Hydra runs in a process of its own.

    Raises:
        ConfigError: the sweep has another launcher than Hydra's own, or SLURM's, which starts the processes itself.
    """
    if trainer.world_size > 1 and command_line.launcher not in (None, "BasicLauncher", "SlurmLauncher"):
        raise ConfigError(
            "trainer.devices",
            trainer.num_devices,
            "jobs of several processes run one after the other: leave out hydra/launcher=, or take trainer.devices=1",
        )


@contextlib.contextmanager
def start_others(trainer: Trainer, ckpt_path: str | None, command_line: CommandLine) -> Iterator[None]:
    """Within it Lightning may start the other processes of a run; after it they have ended.

    Args:
        trainer: the run's.
        ckpt_path: the checkpoint that it goes on from.
        command_line: that asked for it.
    """
    environment, threads = dict(os.environ), torch.get_num_threads()
    launcher: Any = trainer.strategy.launcher
    try:
        with command_line.as_single_run(ckpt_path):
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
