"""The LightningModule: it wires data, noise, loss and denoiser together, and holds no mathematics of its own.

Randomness: every random number of training step t (augmentation, dequantisation, σ, ε, label dropout, dropout in
networks, probes of an estimated log-determinant) comes from torch's global generator, seeded anew with (seed, t, rank)
at the start of the step. A run that resumes at step t therefore draws what it would have drawn, whatever happened in
between.
"""

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from flowdiff.augment import Augmentation, augmented
from flowdiff.compilation import compiled
from flowdiff.data.base import ImageData
from flowdiff.denoisers import Denoiser
from flowdiff.dropout import dropout
from flowdiff.errors import ConfigError, NonFiniteError, at_least, is_number
from flowdiff.flows.logdet import fresh_probes
from flowdiff.losses import Loss
from flowdiff.noise import NoiseDistribution

VALIDATION = 1 << 40  # validation batches draw from seeds that no training step uses


class Diffusion(LightningModule):
    """Training of one denoiser.

    Args:
        denoiser: the model.
        loss: the training objective.
        noise: the distribution of σ.
        augmentation: of the training images.
        config: the resolved configuration, plain values.
        entry: what a checkpoint says of the run, `flowdiff.checkpoint.describe`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        loss: Loss,
        noise: NoiseDistribution,
        augmentation: Augmentation,
        config: dict[str, Any],
        entry: dict[str, Any],
    ) -> None:
        super().__init__()
        check(config)
        loss.check(denoiser)
        self.denoiser, self.loss, self.noise, self.augmentation = denoiser, loss, noise, augmentation
        self.config, self.entry = config, entry
        # a function: what copies the module, as the average does, doesn't copy it
        self.terms = compiled(loss, denoiser) if config.get("compile") else loss
        self.micro_step = 0
        self.last_grad_norm = torch.tensor(math.nan)
        self.save_hyperparameters(config)

    # -- one step ------------------------------------------------------------------------------------------

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Any]:
        self._seed(self.micro_step)
        self.micro_step += 1
        k, shift = self.augmentation(batch[0], self.data.levels)
        x0, labels = self._prepare((k, batch[1]))
        drop = torch.rand(len(x0), device=x0.device) < float(self.config["label_dropout"])
        sigma = self.noise(len(x0), x0.device)
        eps = torch.randn_like(x0)
        # a tensor: a compiled loss would be compiled anew for every other number
        progress = torch.tensor(min(1.0, self.global_step / int(self.config["decay_steps"])), device=x0.device)
        with (
            dropout(self.denoiser, float(self.config["dropout"])),
            fresh_probes(self.denoiser),
            augmented(self.denoiser, shift),
        ):
            terms = self.terms(self.denoiser, x0, labels, sigma, eps, None if labels is None else drop, progress)
        loss = terms["loss"].mean()
        alone = self.trainer.world_size == 1  # else all processes stop together, at the gradient that they share
        if alone and not torch.isfinite(loss):
            raise NonFiniteError(f"the loss is {loss.item()} at step {self.global_step + 1}")
        return {"loss": loss, "sigma": sigma, "terms": {name: term.detach() for name, term in terms.items()}}

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._seed(VALIDATION + batch_idx)
        x0, labels = self._prepare(batch)
        sigma = self.noise(len(x0), x0.device)
        terms = self.loss(self.denoiser, x0, labels, sigma, torch.randn_like(x0))
        if self.denoiser.normalized and self.data.levels is not None:
            lowest = torch.full_like(sigma, float(self.config["sigma_min"]))
            nats = -self.denoiser.log_prob(x0, lowest, labels) / math.prod(x0.shape[1:])  # type: ignore[operator]
            terms["bits_per_dim"] = nats / math.log(2) + math.log2(self.data.levels / 2)
        means = {f"val/{name}": term.mean() for name, term in terms.items()}
        rows: Any = float(len(x0))  # Lightning rounds the mean of whole numbers over the processes
        self.log_dict(means, batch_size=rows, sync_dist=True)

    def _prepare(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Levels to model space; labels only where the model looks at them."""
        k, labels = batch
        return self.data.to_model(k), labels if self.denoiser.num_classes else None

    @property
    def data(self) -> ImageData:
        """The run's data, by way of the trainer: an average of the weights copies all that a module holds."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, ImageData)
        return data

    def _seed(self, step: int) -> None:
        torch.manual_seed((int(self.config["seed"]) * 1_000_003 + step * 1009 + self.global_rank) % 2**63)

    # -- the optimiser -------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        lr, decay = float(self.config["lr"]), float(self.config["weight_decay"])
        optimizer = AdamW(self.parameters(), lr=lr, weight_decay=decay)
        schedule = LambdaLR(optimizer, self.lr_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def lr_factor(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to 0 at ``decay_steps``."""
        warmup, decay = int(self.config["warmup_steps"]), int(self.config["decay_steps"])
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, decay - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def on_train_start(self) -> None:
        """A learning rate or weight decay that was changed for a resumed run wins over the checkpoint's."""
        (optimizer,), (scheduler,) = self.trainer.optimizers, self.trainer.lr_scheduler_configs
        schedule = scheduler.scheduler
        assert isinstance(schedule, LambdaLR)
        lr, decay = float(self.config["lr"]), float(self.config["weight_decay"])
        (group,) = optimizer.param_groups
        for key, old, new in (
            ("lr", group["initial_lr"], lr),
            ("weight_decay", group["weight_decay"], decay),
        ):
            if old != new:
                self.print(f"{key}: {new:g} from now on (the checkpoint had {old:g})")
        schedule.base_lrs[:] = [lr]
        group.update(initial_lr=lr, weight_decay=decay, lr=lr * self.lr_factor(schedule.last_epoch))

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip to a total norm, and stop before a gradient that isn't finite reaches the weights."""
        parameters = [p for p in self.parameters() if p.grad is not None]
        grads = [p.grad for p in self.parameters() if p.grad is not None]
        self.last_grad_norm = torch.nn.utils.get_total_norm(grads)
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
        self.micro_step = int(checkpoint["flowdiff"]["micro_step"])


def check(config: dict[str, Any]) -> None:
    """Refuse values that can't train, by name, before anything is built."""

    def need(key: str, value: Any, right: bool, allowed: str) -> None:
        if not right:
            raise ConfigError(key, value, allowed)

    steps, lr, decay = config["trainer"].get("max_steps"), config["lr"], config["weight_decay"]
    at_least("trainer.max_steps", steps, 1)
    for key, least in (("seed", 0), ("warmup_steps", 0), ("decay_steps", 1)):
        at_least(key, config[key], least)
    need("lr", lr, is_number(lr) and lr > 0, "must be a number > 0")
    need("weight_decay", decay, is_number(decay) and decay >= 0, "must be a number >= 0")
    labels, values = config["label_dropout"], config["dropout"]
    need("label_dropout", labels, is_number(labels) and 0 <= labels <= 1, "must be between 0 and 1")
    need(
        "compile", config.get("compile", False), isinstance(config.get("compile", False), bool), "must be true or false"
    )
    need("dropout", values, is_number(values) and 0 <= values < 1, "must be at least 0 and below 1")
