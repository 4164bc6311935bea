"""What every training has in common: warm-up and cosine decay of an optimiser, clipping, seeds for steps, checkpoints.

Randomness: every random number of training step t comes from torch's global generator, seeded anew with (seed, t,
rank) at the start of the step. A run that resumes at step t therefore draws what it would have drawn, whatever happened
in between.
"""

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from flowdiff.data.base import ImageData
from flowdiff.errors import FlowdiffError, NonFiniteError, is_number, one_line
from flowdiff.model.construction import build
from flowdiff.model.reading import check_types
from flowdiff.training.data_module import DataModule
from flowdiff.training.optimizers import AdamW
from flowdiff.training.request import TrainRequest
from flowdiff.training.sharding import gather

VALIDATION = 1 << 40  # validation batches draw from seeds that no training step uses


class Optimised(LightningModule):
    """Base of the trainings. A subclass gives `training_step` and `validation_step`.

    Args:
        request: what was asked for.
        entry: what a checkpoint says of the run, `model.checkpoint.describe`.
    """

    def __init__(self, request: TrainRequest, entry: dict[str, Any]) -> None:
        super().__init__()
        self.request, self.entry = request, entry
        self.micro_step = 0
        self.has_begun = False  # to train: what a checkpoint holds is restored
        self.last_grad_norm = torch.tensor(math.nan)
        self.save_hyperparameters(entry["config"])

    @property
    def data(self) -> ImageData:
        """The run's data, by way of the trainer: an average of the weights copies all that a module holds."""
        module = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(module, DataModule)
        return module.data

    def list_validated(self, data: ImageData) -> list[str]:
        """The scalars of a validation on these data that are columns of TensorBoard's HParams."""
        return ["val/loss"]

    def seed_step(self) -> None:
        """Begin a training step."""
        self._seed(self.micro_step)
        self.micro_step += 1

    def seed_validation(self, batch_idx: int) -> None:
        """Begin a validation batch: it draws the same each time."""
        self._seed(VALIDATION + batch_idx)

    def _seed(self, step: int) -> None:
        seed = (self.request.seed * 1_000_003 + step * 1009 + self.global_rank) % 2**63
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` takes milliseconds to ask after every device
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    def need_finite(self, loss: Tensor) -> Tensor:
        """The loss. Of several processes all stop together, at the gradient that they share.

        Raises:
            NonFiniteError: it is no number.
        """
        if self.trainer.world_size == 1 and not torch.isfinite(loss):
            raise NonFiniteError(f"the loss is {loss.item()} at step {self.global_step + 1}")
        return loss

    def validation_terms(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """What a validation logs of a batch, (B,) each."""
        raise NotImplementedError

    def validation_names(self) -> list[str]:
        """The names of what a validation logs, as `val/loss`; found out by two rows, without drawing on the run's
        random numbers."""
        batch = next(iter(self.data.batches("val")))
        few: Any = tuple(part[:2].to(self.device) for part in batch)
        with torch.random.fork_rng(), torch.no_grad():
            return [f"val/{name}" for name in self.validation_terms(few)]

    def log_validation(self, terms: dict[str, Tensor]) -> None:
        """Terms of a validation batch, (B,) each, as `val/<name>`: means over all batches of all processes."""
        means = {f"val/{name}": term.mean() for name, term in terms.items()}
        rows: Any = float(len(terms["loss"]))  # Lightning rounds the mean of whole numbers over the processes
        self.log_dict(means, batch_size=rows, sync_dist=True)

    # -- the optimiser -------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        make, request = build(self.request.optimizer), self.request
        try:
            optimizer = make(self, lr=request.lr, weight_decay=request.weight_decay)
        except (TypeError, ValueError) as error:  # a class of the user's own
            raise FlowdiffError(f"optimizer: {one_line(error)}") from error
        schedule = LambdaLR(optimizer, self.lr_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def lr_factor(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to 0 at `decay_steps`."""
        warmup, decay = self.request.warmup_steps, self.request.decay_steps
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, decay - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def on_train_start(self) -> None:
        """A learning rate or weight decay that was changed for a resumed run wins over the checkpoint's."""
        (optimizer,), (scheduler,) = self.trainer.optimizers, self.trainer.lr_scheduler_configs
        schedule = scheduler.scheduler
        assert isinstance(schedule, LambdaLR)
        lr, decay = self.request.lr, self.request.weight_decay
        (group,) = optimizer.param_groups
        if self.trainer.ckpt_path:
            self._check_restored(optimizer)
        for key, old, new in (
            ("lr", group["initial_lr"], lr),
            ("weight_decay", group["weight_decay"], decay),
        ):
            if old != new:
                self.print(f"{key}: {new:g} from now on (the checkpoint had {old:g})")
        schedule.base_lrs[:] = [lr]
        group.update(initial_lr=lr, weight_decay=decay, lr=lr * self.lr_factor(schedule.last_epoch))
        self.has_begun = True

    def _check_restored(self, optimizer: Optimizer) -> None:
        """Hold what a checkpoint holds of the optimiser to what it keeps: numbers, moments of the weights' shapes.

        Raises:
            FlowdiffError: it is something else.
        """
        (group,) = optimizer.param_groups
        for key in ("lr", "initial_lr", "weight_decay"):
            if not is_number(group.get(key)):
                raise FlowdiffError(f"its optimiser's {key} is no number")
        fixed = optimizer.defaults.keys() - {"lr", "initial_lr", "weight_decay"}
        group.update({key: optimizer.defaults[key] for key in fixed})
        if isinstance(optimizer, AdamW) and not all(map(optimizer.fits, optimizer.state)):
            raise FlowdiffError("its optimiser's state is not what this run's optimizer keeps of these weights")

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip to a total norm, and stop before a gradient that isn't finite reaches the weights."""
        (group,) = optimizer.param_groups
        parameters = [p for p in group["params"] if p.grad is not None]
        self.last_grad_norm = gather(torch.nn.utils.get_total_norm([p.grad for p in parameters]))
        plugin = self.trainer.precision_plugin
        scaled = isinstance(plugin, MixedPrecision) and plugin.scaler is not None  # it skips such steps itself
        if not scaled and not torch.isfinite(self.last_grad_norm):
            raise NonFiniteError(f"the gradient is not finite at step {self.global_step + 1}")
        if gradient_clip_val and gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        elif gradient_clip_val:
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, self.last_grad_norm)

    # -- checkpoints ---------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["flowdiff"] = {**self.entry, "micro_step": self.micro_step}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_types(checkpoint["state_dict"], self.state_dict())
        self.micro_step = int(checkpoint["flowdiff"].get("micro_step", checkpoint["global_step"]))
