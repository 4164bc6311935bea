"""The LightningModule: it wires data, noise, loss and denoiser together, and holds no mathematics of its own.

What is random in a training step: augmentation, dequantisation (or the sample of a first stage's posterior), σ, ε,
label dropout, dropout in networks, probes of an estimated log-determinant.
"""

import math
from typing import Any

import torch
from torch import Tensor

from flowdiff.data.base import ImageData
from flowdiff.denoisers.base import Denoiser, Perturbation
from flowdiff.objectives.augmentation import Augmentation
from flowdiff.objectives.losses import Loss, Noised
from flowdiff.objectives.noise import NoiseDistribution
from flowdiff.training.compilation import compile_loss
from flowdiff.training.graphed import make_step, use_graph
from flowdiff.training.optimisation import Optimised
from flowdiff.training.request import TrainRequest


class Diffusion(Optimised):
    """Training of one denoiser.

    Args:
        denoiser: the model.
        loss: the training objective.
        noise: the distribution of σ.
        augmentation: of the training images.
        request: what was asked for.
        entry: what a checkpoint says of the run, `model.checkpoint.describe`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        loss: Loss,
        noise: NoiseDistribution,
        augmentation: Augmentation,
        request: TrainRequest,
        entry: dict[str, Any],
    ) -> None:
        super().__init__(request, entry)
        loss.check(denoiser)
        self.denoiser, self.loss, self.noise, self.augmentation = denoiser, loss, noise, augmentation
        self.weighting = loss.weighting  # trained with the denoiser
        # functions: what copies the module, as the average does, doesn't copy them
        terms = compile_loss(loss, denoiser) if request.compile else loss
        self.step = make_step(terms, use_graph(request, denoiser), loss.weighting)

    # -- one step ------------------------------------------------------------------------------------------

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Any]:
        self.seed_step()
        k, shift = self.augmentation(batch[0], self.data.levels)
        x0, labels = self._prepare((k, batch[1]))
        drop = torch.rand(len(x0), device=x0.device) < self.request.label_dropout
        sigma = self.noise(len(x0), x0.device)
        eps = torch.randn_like(x0)
        # a tensor: a compiled loss would be compiled anew for every other number
        progress = torch.tensor(min(1.0, self.global_step / self.request.decay_steps), device=x0.device)
        given = Perturbation(None if labels is None else drop, shift, self.request.dropout, probes="fresh")
        loss, terms = self.step(self.denoiser, x0, labels, sigma, eps, given, progress)
        return {"loss": self.need_finite(loss), "sigma": sigma, "terms": terms}

    def list_validated(self, data: ImageData) -> list[str]:
        """Bits per dimension too, where the density is one of pixels."""
        return ["val/loss", *(["val/bits_per_dim"] if self.has_bits(data) else [])]

    def has_bits(self, data: ImageData) -> bool:
        """Whether a validation gives bits per dimension."""
        return self.denoiser.normalized and data.levels is not None

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.seed_validation(batch_idx)
        self.log_validation(self.validation_terms(batch))

    def validation_terms(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """What a validation logs of a batch, (B,) each: the terms of the loss, and bits per dimension of images."""
        x0, labels = self._prepare(batch)
        sigma = self.noise(len(x0), x0.device)
        terms = self.loss(self.denoiser, x0, labels, sigma, torch.randn_like(x0))
        if self.has_bits(self.data):
            assert self.data.levels is not None
            lowest = torch.full_like(sigma, self.request.sigma_min)
            nats = -self.denoiser.log_prob(x0, lowest, labels) / math.prod(x0.shape[1:])  # type: ignore[operator]
            terms["bits_per_dim"] = nats / math.log(2) + math.log2(self.data.levels / 2)
        return terms

    def _prepare(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Levels to model space; labels only where the model looks at them."""
        k, labels = batch
        return self.data.to_model(k), labels if self.denoiser.num_classes else None


def initialise(denoiser: Denoiser, data: ImageData, noise: NoiseDistribution) -> None:
    """Show a new model that wants it (`Denoiser.wants_first_batch`) the first training batch, noised as in training.

    There is no trainer yet, and no average of the weights: every process sees the same batch, and the average begins
    with what the batch has set.

    Args:
        denoiser: the model, fitted to the data's statistics.
        data, noise: the run's. The batch is noised by torch's global generator, which the run has seeded.
    """
    if not denoiser.wants_first_batch:
        return
    k, labels = next(iter(data.batches("train")))
    x0 = data.to_model(k)
    batch = Noised(x0, labels if denoiser.num_classes else None, noise(len(x0)), torch.randn_like(x0))
    denoiser.initialise(batch.x, batch.sigma, batch.labels)
