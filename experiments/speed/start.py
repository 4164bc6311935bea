"""Seconds of the CPU from the start of Python to an answer, or to the end of the first training step.

first step      of `flowdiff.train`, its Lightning, callbacks, loggers and data imported and built
"""

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from experiments.common.columns import Column, Row
from experiments.common.spread import Spread
from experiments.speed.steps import spread

FIRST = "first step"
PYTHON: dict[str, tuple[str, ...]] = {
    "python -c pass": ("-c", "pass"),
    "import torch": ("-c", "import torch"),
    "flowdiff.train --help": ("-m", "flowdiff.train", "--help"),
    "flowdiff.train --cfg job": ("-m", "flowdiff.train", "--cfg", "job"),
    "import flowdiff": ("-c", "import flowdiff"),
    "import flowdiff.training": ("-c", "import flowdiff.training"),
    FIRST: ("-m", "flowdiff.train", "+callbacks.first._target_=experiments.speed.start.FirstStep"),
}
COLUMNS = (Column("name", "start", lambda row: row["name"]), spread("seconds", "CPU seconds"))


class FirstStep(Callback):
    """Leaves without farewell after the first training step, so that nothing that follows is counted."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        os._exit(0)


def measure(checkout: Path, rounds: int, say: Callable[[Row], None]) -> list[Row]:
    """A row for each command, run in turn in the folder of a checkout; `say` is given each at the end."""
    found: dict[str, list[float]] = {name: [] for name in PYTHON}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for name, words in PYTHON.items():
                more = (f"hydra.run.dir={folder}/{number}",) if name == FIRST else ()
                found[name].append(cpu_seconds([sys.executable, *words, *more], checkout))
    rows: list[Row] = [{"name": name, "seconds": Spread.of(taken)} for name, taken in found.items()]
    for row in rows:
        say(row)
    return rows


def cpu_seconds(command: list[str], folder: Path) -> float:
    """Of a process, in the folder.

    Raises:
        CalledProcessError: it failed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    settings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}
    subprocess.run(command, cwd=folder, env=settings, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
