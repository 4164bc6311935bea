"""The scalars of a training, as means since the last time."""

import time
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from flowdiff.errors import ConfigError
from flowdiff.options import Length, Positive, checked
from flowdiff.training.optimisation import Optimised


class Scalars(Callback):
    """Every `trainer.log_every_n_steps` steps, means since the last time: loss and its terms, the loss by
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
        edges = self.edges = self.edges.to(sigma.device)
        index = torch.bucketize(sigma, edges)
        totals = torch.zeros(2, len(edges) + 1, device=sigma.device)
        totals[0].index_add_(0, index, loss.float())
        totals[1].index_add_(0, index, torch.ones_like(loss, dtype=torch.float32))
        old = self.buckets
        self.buckets = (totals[0], totals[1])
        if old is not None:
            self.buckets = (old[0].to(edges.device) + totals[0], old[1].to(edges.device) + totals[1])

    def metrics(self, trainer: Trainer) -> dict[str, float]:
        """The means since the last call of `_forget`, over all processes."""
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
