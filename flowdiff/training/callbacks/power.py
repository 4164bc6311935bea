"""Two averages of the weights, from which one of any length is made after the training: `weights=ema:0.08`."""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from flowdiff.errors import FlowdiffError
from flowdiff.files import is_file
from flowdiff.model import averages
from flowdiff.options import Length, Range, checked


class PowerAverages(Callback):
    """Averages by power functions of time, updated after every step; both are in every checkpoint.

    The average that is seen in validations, and that `weights=ema` means, stays that of `EMA`. A run that goes on from
    one without them begins as if its weights had always been those of the checkpoint.

    Args:
        lengths: σ_rel of the averages.
        snapshots: how many of them a run writes down at equal distances, as `RUN/averages/step-000400.safetensors`, of
            half precision: two bytes of each weight for each length.
    """

    @checked
    def __init__(
        self,
        lengths: Annotated[Sequence[Annotated[float, Range(*averages.LENGTHS)]], Length(2, 10)] = (0.05, 0.1),
        snapshots: Annotated[int, Range(1, 1000)] = 16,
    ) -> None:
        self.lengths, self.snapshots = lengths, snapshots
        self.weights: dict[str, Tensor] = {}
        self.averages: dict[str, dict[str, Tensor]] = {}
        self.step = 0  # of the last update

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the weights as they are, or with what a checkpoint holds; later snapshots are another run's."""
        self.weights = {name: weight.detach() for name, weight in pl_module.named_parameters() if weight.requires_grad}
        restored, self.step = self.averages, trainer.global_step
        self.averages = {f"{length:f}".rstrip("0"): _copy(self.weights) for length in self.lengths}
        for length in self.averages.keys() & restored.keys():
            for name, average in self.averages[length].items():
                _fill(average, restored[length].get(name), name)
        self.folder = Path(trainer.default_root_dir).resolve() / averages.FOLDER
        if trainer.is_global_zero:
            goes_on = trainer.ckpt_path and restored.keys() == self.averages.keys()
            self._take_over(Path(str(trainer.ckpt_path)).resolve().parent.parent if goes_on else None)

    def _take_over(self, run: Path | None) -> None:
        """Of the run that this one goes on from the snapshots up to its checkpoint, and no others."""
        known = {} if run is None else averages.snapshots(run / averages.FOLDER)
        known = {step: path for step, path in known.items() if step <= self.step and is_file(path)}
        for path in set(averages.snapshots(self.folder).values()) - set(known.values()):
            path.unlink()
        for step, path in known.items():
            target = averages.snapshot(self.folder, step)
            if target != path:
                self.folder.mkdir(exist_ok=True)
                shutil.copyfile(path, target)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self.step:  # with accumulated gradients not every batch ends in a step
            return
        self.step = step
        weights = list(self.weights.values())
        for length, average in self.averages.items():
            kept = averages.keep(step, averages.exponent(float(length)))
            torch._foreach_lerp_(list(average.values()), weights, 1 - kept)
        if step % math.ceil(trainer.max_steps / self.snapshots) == 0 and trainer.is_global_zero:
            averages.write_snapshot(self.averages, averages.snapshot(self.folder, step))

    def state_dict(self) -> dict[str, Any]:
        return {averages.KEY: self.averages}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.averages = dict(averages.find_averages({"callbacks": {"own": state_dict}}))  # type: ignore[arg-type]


def _copy(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in weights.items()}


def _fill(average: Tensor, stored: Tensor | None, name: str) -> None:
    if stored is None or stored.shape != average.shape:
        raise FlowdiffError(f"its average of {name} is not that of this model")
    average.copy_(stored)
