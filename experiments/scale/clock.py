"""A callback that measures a training of one or several processes: seconds of a step, and bytes that are sent."""

import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from flowdiff.files import write_json


class Clock(Callback):
    """Measures from step `warm` to the last one, which comes before any validation.

    Args:
        file: JSON: `seconds` and `cpu_seconds` (of the first process) of a step, `bytes` of gradients that it sends a
            step, in how many `buckets`, `parameters`.
        warm: steps that aren't measured.
    """

    def __init__(self, file: str, warm: int = 5) -> None:
        self.file, self.warm = Path(file), warm
        self.sent: list[int] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        wrapped = trainer.strategy.model
        if isinstance(wrapped, DistributedDataParallel):
            wrapped.register_comm_hook(None, self.send)

    def send(self, group: None, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        """What DDP does with a bucket of gradients, counted."""
        self.sent.append(bucket.buffer().nbytes)
        return allreduce_hook(group, bucket)  # type: ignore[arg-type]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.warm:
            self.sent.clear()
            self.start = time.perf_counter(), time.process_time()
        if trainer.global_step == trainer.max_steps:
            steps = trainer.global_step - self.warm
            seconds, cpu = time.perf_counter() - self.start[0], time.process_time() - self.start[1]
            self.found = {"seconds": seconds / steps, "cpu_seconds": cpu / steps}
            self.found |= {"bytes": sum(self.sent) / steps, "buckets": len(self.sent) / steps}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            write_json(self.file, {**self.found, "parameters": sum(p.numel() for p in pl_module.parameters())})
