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
from torch import Tensor, nn

from flowdiff.options import Range, checked
from flowdiff.training.sharding import Sharded, gather, load_whole, local


class EMA(EMAWeightAveraging):
    """The exponential moving average of the weights, updated after every step, with a warm-up of its decay.

    Validation and the callbacks before this one see the average, checkpoints hold both. When training ends
    the model keeps its raw weights (Lightning's class overwrites them: the last checkpoint would lose them).
    The average lies where the model is trained (Lightning's lies where the model is before that, on the CPU).

    Args:
        decay: in [0, 1).
    """

    @checked
    def __init__(self, decay: Annotated[float, Range(0, 1, below=True)] = 0.999) -> None:
        super().__init__(decay=decay, use_buffers=False)  # buffers are copied, not averaged
        self.decay = decay
        self._pairs: Pairs | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._device = trainer.strategy.root_device
        self._pairs = None
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step > self._latest_update_step:  # with accumulated gradients not every batch ends in a step
            self._latest_update_step = trainer.global_step
            if self._pairs is None:  # what a checkpoint holds is restored by now
                self._pairs = Pairs(self._average_model, pl_module)
            self._pairs.update(self.decay)

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


class Pairs:
    """The tensors of an average and those of a model, listed once: to walk over the modules takes longer than to
    average.

    Args:
        average: torch's `AveragedModel`, which counts its updates.
        model: averaged by it.
    """

    def __init__(self, average: Any, model: nn.Module) -> None:
        self.counter: Tensor = average.n_averaged
        self.updates = int(self.counter)
        self.averages, self.weights = ([local(p.detach()) for p in m.parameters()] for m in (average.module, model))
        self.copies, self.buffers = ([local(b) for b in m.buffers()] for m in (average.module, model))

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """After a step: the weights into the average, buffers as they are."""
        n = self.updates
        if n == 0:
            torch._foreach_copy_(self.averages, self.weights)
        else:
            torch._foreach_lerp_(self.averages, self.weights, 1 - min(decay, (1 + n) / (10 + n)))
        if self.buffers:
            torch._foreach_copy_(self.copies, self.buffers)
        self.updates += 1
        self.counter += 1
