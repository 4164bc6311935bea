r"""A generative classifier, from the densities of the classes (Ng & Jordan 2001):

    p(c | x; σ) = π_c p(x; σ, c) / Σ_k π_k p(x; σ, k),        x = x0 + σε.

Exact for a flow; a score network has no p(x; σ, c) and needs Monte Carlo over noise levels instead (Li et al. 2023,
arXiv:2303.16203).
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor

from flowdiff.metrics.base import Evaluand, Metric, Result
from flowdiff.metrics.likelihood import log_likelihood_of_classes, no_likelihood
from flowdiff.options import Count, Length, Sigma, checked
from flowdiff.quantities import Quantity


class ClassPosterior(Metric):
    """Accuracy of argmax p(c | x; σ) on noised data, at several noise levels; all see the same x0 and ε.

    Args:
        sigmas: noise levels.
        num_images: rows of the split used; null is all of them.
        prior: "uniform", or "train": the frequencies of the classes in the training split.

    Raises:
        ConfigError: another prior.
    """

    quantities = (
        Quantity("class_posterior/*", better="higher", plotted="class_posterior/0.2", column="class_posterior/0.2"),
    )

    @checked
    def __init__(
        self,
        sigmas: Annotated[Sequence[Sigma], Length(1, 100)],
        num_images: Count | None = 1000,
        prior: Literal["uniform", "train"] = "uniform",
    ) -> None:
        self.sigmas = [float(sigma) for sigma in sigmas]
        self.num_images = num_images
        self.prior = prior

    def unfit(self, model: Evaluand) -> str | None:
        """Needs a normalised density for each of several classes."""
        return no_likelihood(model) or ("the model is unconditional" if model.denoiser.num_classes < 1 else None)

    def keys(self, model: Evaluand) -> list[str]:
        """One for each noise level."""
        return [f"class_posterior/{sigma:g}" for sigma in self.sigmas]

    def log_prior(self, model: Evaluand) -> Tensor:
        """log π, (K,) float64."""
        k = model.denoiser.num_classes
        if self.prior == "uniform":
            return torch.full((k,), -math.log(k), dtype=torch.float64)
        counts = model.data.images("train")[1].bincount(minlength=k).double()
        return (counts / counts.sum()).log()

    def __call__(self, model: Evaluand) -> dict[str, Result]:
        """Keys `class_posterior/<sigma>`, with the mean of −log p(label | x; σ) as `log_loss` in nats."""
        x0, noise, labels = model.noised(self.num_images)
        prior, n = self.log_prior(model), len(x0)
        results = {}
        for turn, sigma in enumerate(self.sigmas):
            x = x0 + sigma * noise
            joint = prior + log_likelihood_of_classes(model, x, "class posterior", sigma, turn, len(self.sigmas))
            accuracy = (joint.argmax(1) == labels).double().mean().item()
            conditions = model.conditions(
                standard_error=math.sqrt(accuracy * (1 - accuracy) / n),
                sigma=sigma,
                prior=self.prior,
                classes=len(prior),
                log_loss=-joint.log_softmax(1)[torch.arange(n), labels].mean().item(),
            )
            results[f"class_posterior/{sigma:g}"] = Result(accuracy, n, conditions)
        return results
