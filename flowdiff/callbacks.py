"""What happens beside the optimisation: the average of the weights, checkpoints, scalars, progress.

Order matters. `EMA` puts the average into the model at the start of a validation and takes it out in its own
``on_validation_epoch_end``; whatever looks at the model in that hook must stand before it in the list, and
`flowdiff.training` sees to it. The average is

    w̄ ← w̄ + (1 − d)(w − w̄),   d = min(decay, (1 + n)/(10 + n))   after n updates
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EMAWeightAveraging
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor

from flowdiff.checkpoint import read
from flowdiff.errors import ConfigError, is_number
from flowdiff.files import there
from flowdiff.interrupts import Interrupted, Interrupts
from flowdiff.optimisation import Optimised
from flowdiff.options import OUTSIDE, Count, Length, NonNegative, Positive, Range, checked


class EMA(EMAWeightAveraging):
    """The exponential moving average of the weights, updated after every step, with a warm-up of its decay.

    Validation and the callbacks before this one see the average, checkpoints hold both. When training ends
    the model keeps its raw weights (Lightning's class overwrites them: the last checkpoint would lose them).

    Args:
        decay: in [0, 1).
    """

    @checked
    def __init__(self, decay: Annotated[float, Range(0, 1, below=True)] = 0.999) -> None:
        super().__init__(decay=decay, use_buffers=False)  # buffers are copied, not averaged
        self._kwargs = {"multi_avg_fn": self._average}
        self.decay = decay

    @torch.no_grad()
    def _average(self, averages: Any, weights: Any, updates: Tensor | int) -> None:
        n = int(updates)
        torch._foreach_lerp_(averages, weights, 1 - min(self.decay, (1 + n) / (10 + n)))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the raw weights in the model."""


class Checkpoints(Checkpoint):
    """``last.ckpt`` every N steps, at the end and at a signal; ``best.ckpt`` at the best validation so far.

    Args:
        folder: where they go.
        every_n_steps: N.
        monitor: the logged value that decides, lower is better.
    """

    @checked
    def __init__(self, folder: Annotated[str, OUTSIDE], every_n_steps: Count = 500, monitor: str = "val/loss") -> None:
        self.folder, self.every_n_steps, self.monitor = Path(folder), every_n_steps, monitor
        self.best = math.inf
        self.saved_step = -1
        self.interrupts: Interrupts | None = None

    @property
    def last_path(self) -> Path:
        return self.folder / "last.ckpt"

    @property
    def best_path(self) -> Path:
        return self.folder / "best.ckpt"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Optimised)
        names = pl_module.validation_names()
        if self.monitor not in names:
            raise ConfigError("monitor", self.monitor, f"must be one of {', '.join(names)}")
        self.saved_step = trainer.global_step
        if self.best_path.exists():  # resumed in its own folder
            stored = read(self.best_path).get("callbacks")
            state = stored.get(self.state_key) if isinstance(stored, dict) else None
            best: Any = state.get("best") if isinstance(state, dict) else None
            self.best = min(self.best, float(best) if is_number(best) else math.inf)
        else:  # a new folder: the best so far is not in it
            self.best = math.inf
        if self.interrupts is not None:
            self.interrupts.install()  # Lightning's own handler has come in between

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        there(trainer.default_root_dir)
        step = trainer.global_step
        if step != self.saved_step and (step % self.every_n_steps == 0 or step == trainer.max_steps):
            # the last step too: in on_train_end Lightning has closed the epoch, wherever in it the run stopped,
            # and a run that goes on from there would leave out the rest of the epoch's batches
            self.save_last(trainer)
        self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            value = trainer.callback_metrics.get(self.monitor)
            if value is not None and float(value) < self.best:
                self.best = float(value)
                self._save(trainer, self.best_path)
            self._stop_if_asked(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self.saved_step or not self.last_path.exists():
            self.save_last(trainer)

    def save_last(self, trainer: Trainer) -> None:
        """Write ``last.ckpt``."""
        self.saved_step = trainer.global_step
        self._save(trainer, self.last_path)

    def _save(self, trainer: Trainer, path: Path) -> None:
        """Not without what the loggers were told of its steps: a run that goes on doesn't tell them again."""
        there(trainer.default_root_dir)
        for logger in trainer.loggers:
            logger.save()
        trainer.save_checkpoint(path, weights_only=False)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        received = None if self.interrupts is None else self.interrupts.received
        if trainer.world_size > 1:  # all processes stop at the same step
            if not trainer.strategy.reduce_boolean_decision(received is not None, all=False):
                return
            received = received or 15
        if received is not None:
            if trainer.global_step != self.saved_step:
                self.save_last(trainer)
            raise Interrupted(received)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        best: Any = state_dict.get("best")
        self.best = float(best) if is_number(best) else math.inf


class Scalars(Callback):
    """Every ``trainer.log_every_n_steps`` steps, means since the last time: loss and its terms, the loss by
    bucket of σ, norm of the gradient before clipping, learning rate, images per second; on CUDA the most memory used.

    Args:
        buckets: edges between the buckets of σ.
    """

    @checked
    def __init__(self, buckets: Annotated[Sequence[Positive], Length(0, 100)] = (0.05, 0.2, 0.5, 1.0, 3.0)) -> None:
        if list(buckets) != sorted(set(buckets)):
            raise ConfigError("buckets", list(buckets), "must increase")
        self.edges = torch.tensor(list(buckets), dtype=torch.float32)
        self.logged_step = self.seen_step = 0
        self.restored: dict[str, Any] = {}
        self._forget()

    def _forget(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.buckets: tuple[Tensor, Tensor] | None = None
        self.norm = torch.tensor(0.0)
        self.norms, self.steps, self.images, self.since, self.paused = 0, 0, 0, time.perf_counter(), 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._forget()
        if self.restored and trainer.world_size == 1:  # of several processes only the first one's sums were kept
            self.sums = {str(name): torch.tensor(float(value)) for name, value in self.restored["sums"].items()}
            self.norm, self.norms = torch.tensor(float(self.restored["norm"])), int(self.restored["norms"])
            self.steps = int(self.restored["steps"])
            if self.restored["buckets"] is not None:
                losses, counts = map(torch.tensor, self.restored["buckets"])
                self.buckets = (losses, counts)
        self.restored = {}
        self.seen_step = self.logged_step = trainer.global_step

    def state_dict(self) -> dict[str, Any]:
        """The means that are under way: a run that goes on logs what it would have logged."""
        return {
            "sums": {name: float(total) for name, total in self.sums.items()},
            "norm": float(self.norm),
            "norms": self.norms,
            "steps": self.steps,
            "buckets": None if self.buckets is None else [values.tolist() for values in self.buckets],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.restored = dict(state_dict)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pause = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.paused += time.perf_counter() - self._pause

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        terms, sigma = outputs["terms"], outputs.get("sigma")
        assert isinstance(pl_module, Optimised)
        for name, term in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + term.float().mean()
        if trainer.global_step != self.seen_step:  # with accumulated gradients not every batch ends in a step
            self.seen_step = trainer.global_step
            self.norms += 1
            self.norm = self.norm + pl_module.last_grad_norm.float()
        if sigma is not None:  # an autoencoder has none
            self._fill_buckets(sigma, terms["loss"])
        self.steps += 1
        self.images += len(terms["loss"]) * trainer.world_size
        step = trainer.global_step
        if step % trainer.log_every_n_steps == 0 and step != self.logged_step:  # type: ignore[attr-defined]
            self.logged_step = step
            metrics = self.metrics(trainer)
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=step)
            self._forget()

    def _fill_buckets(self, sigma: Tensor, loss: Tensor) -> None:
        edges = self.edges.to(sigma.device)
        index = torch.bucketize(sigma, edges)
        totals = torch.zeros(2, len(edges) + 1, device=sigma.device)
        totals[0].index_add_(0, index, loss.float())
        totals[1].index_add_(0, index, torch.ones_like(loss, dtype=torch.float32))
        old = self.buckets
        self.buckets = (totals[0], totals[1])
        if old is not None:
            self.buckets = (old[0].to(edges.device) + totals[0], old[1].to(edges.device) + totals[1])

    def metrics(self, trainer: Trainer) -> dict[str, float]:
        """The means since the last call of ``_forget``, over all processes."""
        seconds = time.perf_counter() - self.since - self.paused
        totals = torch.cat([torch.stack(list(self.sums.values())), *(self.buckets or ())])
        if trainer.world_size > 1:
            totals = trainer.strategy.reduce(totals, reduce_op="sum")
        values, buckets = totals[: len(self.sums)], totals[len(self.sums) :].chunk(2)
        count = self.steps * trainer.world_size
        found = {f"train/{name}": float(total) / count for name, total in zip(self.sums, values, strict=True)}
        found["train/grad_norm"] = float(self.norm) / max(self.norms, 1)
        if values.is_cuda:
            found["train/gpu_memory_gb"] = torch.cuda.max_memory_allocated(values.device) / 2**30
        found["train/lr"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        found["train/images_per_second"] = self.images / max(seconds, 1e-9)
        if self.buckets is not None:
            for name, total, count in zip(bucket_names(self.edges.tolist()), *buckets, strict=True):
                if count:
                    found[f"train/loss_by_sigma/{name}"] = float(total / count)
        return found


def bucket_names(edges: Sequence[float]) -> list[str]:
    """Of the buckets between, below and above the edges."""
    ends = ["0", *(f"{edge:g}" for edge in edges), "inf"]
    return [f"{low}-{high}" for low, high in zip(ends[:-1], ends[1:], strict=True)]


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
