"""What happens beside the optimisation: the average of the weights, checkpoints, scalars, progress.

Order matters. `EMA` puts the average into the model at the start of a validation and takes it out in its own
`on_validation_epoch_end`; whatever looks at the model in that hook must stand before it in the list, and
`training.run` sees to it. The average is

    w̄ ← w̄ + (1 − d)(w − w̄),   d = min(decay, (1 + n)/(10 + n))   after n updates
"""

from typing import Annotated, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor

from flowdiff.options import Range, checked


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
