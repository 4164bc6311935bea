"""The progress of a training."""

import math
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from flowdiff.options import NonNegative, checked


class TrainingProgress(Callback):
    """A bar over steps when the output is a terminal, a line every few seconds otherwise.

    Args:
        interval: seconds between two lines.
    """

    @checked
    def __init__(self, interval: NonNegative = 10.0) -> None:
        self.interval = interval
        self._bar: Progress | None = None
        self._console = Console()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first, self._start, self._shown = trainer.global_step, time.monotonic(), -math.inf
        if self._console.is_terminal and trainer.is_global_zero:
            times = (MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            values = TextColumn("{task.fields[values]}")
            self._bar = Progress("training", BarColumn(), *times, values, console=self._console)
            self._bar.add_task("", total=trainer.max_steps, completed=trainer.global_step, values="")
            self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        wait = 0.2 if self._bar else self.interval
        if not trainer.is_global_zero or now - self._shown < wait:
            return
        self._shown = now
        step, total = trainer.global_step, trainer.max_steps
        rate = (step - self._first) / max(now - self._start, 1e-9)
        values = f"loss {float(outputs['loss']):.4g}{described(trainer, 'val/bits_per_dim')}"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, values=values)
            return
        left = (total - step) / max(rate, 1e-9)
        print(f"step {step}/{total}  {values}  {rate:.1f} steps/s  {left:.0f} s left", flush=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is None and trainer.is_global_zero and not trainer.sanity_checking:
            found = described(trainer, "val/loss", "val/bits_per_dim", "val/nll", "val/denoising")
            print(f"step {trainer.global_step}/{trainer.max_steps}  validation:{found}", flush=True)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()


def described(trainer: Trainer, *names: str) -> str:
    """Those of the named values that were logged, as words for a line."""
    metrics = trainer.callback_metrics
    return "".join(f"  {name.replace('val/', '')} {float(metrics[name]):.4g}" for name in names if name in metrics)
