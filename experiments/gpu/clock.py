"""A callback that measures a training: seconds and operations of a step, peak memory."""

import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.flop_counter import FlopCounterMode

from flowdiff.files import write_json
from flowdiff.metrics.cost import wait
from flowdiff.training.diffusion import Diffusion
from flowdiff.training.graphed import make_step


class Clock(Callback):
    """Measures from step `warm` to the last one, which comes before any validation.

    Args:
        file: JSON: `seconds` of a step, `gigabytes` (10⁹ bytes) of PyTorch's allocator on the GPU at their peak,
            `operations` of one step's matrix products and convolutions.
        warm: steps that aren't timed.
    """

    def __init__(self, file: str, warm: int = 8) -> None:
        self.file, self.warm = Path(file), warm

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.warm:
            wait(pl_module.device)
            self.start = time.perf_counter()
        if trainer.global_step == trainer.max_steps:
            wait(pl_module.device)
            self.seconds = (time.perf_counter() - self.start) / (trainer.global_step - self.warm)
            self.bytes = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
            self.batch = batch

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Diffusion)
        pl_module.step = make_step(pl_module.loss, False)  # the counter can't look into what is compiled or recorded
        with FlopCounterMode(display=False) as counter:
            pl_module.training_step(self.batch, 0)["loss"].backward()
        write_json(
            self.file,
            {"seconds": self.seconds, "gigabytes": self.bytes / 1e9, "operations": counter.get_total_flops()},
        )
