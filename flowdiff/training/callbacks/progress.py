"""The progress of a training."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.progress import MofNCompleteColumn, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

from flowdiff.options import NonNegative, checked
from flowdiff.progress import VALUES, Progress, make_bar

#: What a line can say of the last validation.
VALIDATED = ("val/bits_per_dim", "val/nll", "val/denoising")


class TrainingProgress(Callback):
    """A bar over steps when the output is a terminal, a line every few seconds otherwise.

    Args:
        interval: seconds between two lines.
    """

    @checked
    def __init__(self, interval: NonNegative = 10.0) -> None:
        self.interval = interval
        self._steps: Steps | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        quiet, done = not trainer.is_global_zero, trainer.global_step
        self._steps = Steps("step", trainer.max_steps, quiet, 0.0, self.interval, done=done, stdout=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        def describe_values() -> str:
            validated = next((name for name in VALIDATED if name in trainer.callback_metrics), "val/loss")
            return f"loss {float(outputs['loss']):.4g}{list_values(trainer, validated)}"

        if self._steps is not None:
            self._steps.advance(trainer.global_step - self._steps.done, describe_values)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        has_bar = self._steps is not None and self._steps.has_bar
        if not has_bar and trainer.is_global_zero and not trainer.sanity_checking:
            found = list_values(trainer, "val/loss", *VALIDATED)
            print(f"step {trainer.global_step}/{trainer.max_steps}  validation:{found}", flush=True)

    def _close(self) -> None:
        if self._steps is not None:
            self._steps.__exit__(None, None, None)
            self._steps = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()


class Rate(ProgressColumn):
    """Steps a second.

    Args:
        unit: behind the number.
    """

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        """A word, as long as nothing is known a dash."""
        speed = task.finished_speed or task.speed
        return Text("–" if speed is None else f"{speed:.{1 if speed < 100 else 0}f}{self.unit}")


class Steps(Progress):
    """Of a training: `step 30/100  loss 1.234  9.8 steps/s  7 s left`, or a bar with the same."""

    def list_columns(self, width: int) -> Sequence[str | ProgressColumn]:
        rate = Rate("/s" if width < 80 else " steps/s")
        return (make_bar(width), MofNCompleteColumn(), rate, TimeRemainingColumn(), VALUES)

    def describe(self, seconds: float, values: str) -> str:
        rate = (self.done - self._first) / max(seconds, 1e-9)
        left = (self.total - self.done) / max(rate, 1e-9)
        return f"step {self.done}/{self.total}  {values}  {rate:.1f} steps/s  {left:.0f} s left"


def list_values(trainer: Trainer, *names: str) -> str:
    """Those of the named values that were logged, as words for a line."""
    metrics = trainer.callback_metrics
    return "".join(f"  {name.replace('val/', '')} {float(metrics[name]):.4g}" for name in names if name in metrics)
