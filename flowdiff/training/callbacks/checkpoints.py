"""The checkpoints of a run: last.ckpt and best.ckpt."""

import math
from pathlib import Path
from typing import Annotated, Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from flowdiff.errors import ConfigError, is_number
from flowdiff.files import require_folder
from flowdiff.model.checkpoint import read
from flowdiff.options import OUTSIDE, Count, checked
from flowdiff.runs.interrupts import Interrupted, Interrupts
from flowdiff.training.optimisation import Optimised


class Checkpoints(Checkpoint):
    """`last.ckpt` every N steps, at the end and at a signal; `best.ckpt` at the best validation so far.

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
        require_folder(trainer.default_root_dir)
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
        """Write `last.ckpt`."""
        self.saved_step = trainer.global_step
        self._save(trainer, self.last_path)

    def _save(self, trainer: Trainer, path: Path) -> None:
        """Not without what the loggers were told of its steps: a run that goes on doesn't tell them again."""
        require_folder(trainer.default_root_dir)
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
