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
from flowdiff.training.sharding import Sharded, gather, load_whole, local


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

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The average is where the weights will be: Lightning would leave it on the CPU, and copy them at each step."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:  # it is read at each step, for which no device should be waited for
            self._average_model.n_averaged = torch.zeros((), dtype=torch.int64)

    @torch.no_grad()
    def _average(self, averages: Any, weights: Any, updates: Tensor | int) -> None:
        assert self._average_model is not None
        n = int(self._average_model.n_averaged)
        share = 1 - min(self.decay, (1 + n) / (10 + n))
        torch._foreach_lerp_([local(a) for a in averages], [local(w) for w in weights], share)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        checkpoint["state_dict"] = {name: gather(value) for name, value in checkpoint["state_dict"].items()}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not isinstance(trainer.strategy, Sharded):
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
            return
        assert self._average_model is not None
        load_whole(self._average_model.module, checkpoint["state_dict"])
        self._average_model.n_averaged.copy_(checkpoint["averaging_state"]["n_averaged"])
        load_whole(pl_module, checkpoint["current_model_state"])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the raw weights in the model."""
