r"""Telling a data set's images from another's by their log-density.

    AUROC = P(s > s') + ½ P(s = s'),      s = log p(x; σ) of the data's own images, s' of the others,

½ if the density can't tell, below ½ if it is higher on the others, as it can be (Nalisnick et al. 2019,
arXiv:1810.09136). The standard error is that of DeLong et al. (1988). A class-conditional model is asked for the
mixture of its classes, p(x; σ) = Σ_c p(x; σ, c)/K, not for its null class.
"""

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from flowdiff.errors import ConfigError
from flowdiff.metrics.base import Evaluand, Metric, Result
from flowdiff.metrics.likelihood import log_likelihood, log_likelihood_of_classes, no_likelihood
from flowdiff.options import Count, Length, Sigma, checked
from flowdiff.quantities import Quantity


def auroc(own: Tensor, other: Tensor) -> tuple[float, float]:
    """The exact AUROC of scores own (M,) above other (N,), ties counted half, and its standard error.

    NaN if a score is.
    """
    from scipy.stats import rankdata

    m, n = len(own), len(other)
    if own.isnan().any() or other.isnan().any():
        return math.nan, math.nan
    both = torch.cat([own, other])
    together, of_own, of_other = (torch.from_numpy(rankdata(scores.numpy())) for scores in (both, own, other))
    above = (together[:m] - of_own) / n  # the share of the others below each own score
    below = 1 - (together[m:] - of_other) / m  # the share of the own scores above each other
    error = math.sqrt(sum(float(v.var()) / len(v) for v in (above, below) if len(v) > 1))
    return above.mean().item(), error


class OODAuroc(Metric):
    """AUROC of log p for telling the split's images from another data set's, at sigma_min and at further levels.

    Args:
        sigmas: noise levels beside sigma_min, at which both sets get the same noise.
        num_images: images of each set, at most; null is all.
        against: the other set, by its name in the dataset's `out_of_distribution`; "auto" is the first there.
    """

    quantities = (
        Quantity("ood_auroc", better="higher", plotted="ood_auroc", column="ood_auroc"),
        Quantity("ood_auroc/*", better="higher"),
    )

    @checked
    def __init__(
        self,
        sigmas: Annotated[Sequence[Sigma], Length(0, 100)] = (),
        num_images: Count | None = 1000,
        against: str = "auto",
    ) -> None:
        self.sigmas = [float(sigma) for sigma in sigmas]
        self.num_images = num_images
        self.against = against

    def unfit(self, model: Evaluand) -> str | None:
        """Needs a normalised density and another set."""
        if not model.data.out_of_distribution():
            return f"dataset={model.data.name} names no other images of its shape"
        return no_likelihood(model)

    def keys(self, model: Evaluand) -> list[str]:
        """One at sigma_min, and one for each further noise level."""
        return ["ood_auroc", *(f"ood_auroc/{sigma:g}" for sigma in self.sigmas)]

    def log_density(self, model: Evaluand, x: Tensor, sigma: float, turn: int, turns: int) -> Tensor:
        """log p(x; σ) in nats, x (N, *shape) → (N,) float64."""
        k = model.denoiser.num_classes
        if not k:
            return log_likelihood(model, x, torch.zeros(len(x)), "ood auroc", sigma, turn, turns)
        classes = log_likelihood_of_classes(model, x, "ood auroc", sigma, turn, turns)
        return classes.logsumexp(1) - math.log(k)

    def __call__(self, model: Evaluand) -> dict[str, Result]:
        """Keys `ood_auroc` (at sigma_min) and `ood_auroc/<sigma>`."""
        sets = model.data.out_of_distribution()
        name = next(iter(sets)) if self.against == "auto" else self.against
        if name not in sets:
            allowed = f"must be one of auto, {', '.join(sets)} for dataset={model.data.name}"
            raise ConfigError("metrics.ood_auroc.against", name, allowed)
        other = sets[name](model.split)
        order = torch.randperm(len(other), generator=torch.Generator().manual_seed(0))
        own = model.real(self.num_images)[0]
        other = other[order[: self.num_images]]
        generator = torch.Generator().manual_seed(model.seed)
        x0, x1 = model.data.to_model(own, generator), model.data.to_model(other, generator)
        noise = torch.randn(max(len(x0), len(x1)), *model.data.shape, generator=generator)
        results = {}
        levels = {"ood_auroc": model.sigma_min} | {f"ood_auroc/{sigma:g}": sigma for sigma in self.sigmas}
        for i, (key, sigma) in enumerate(levels.items()):
            scale = 0.0 if key == "ood_auroc" else sigma  # at sigma_min as bits/dim: the dequantised data themselves
            scores = [
                self.log_density(model, x + scale * noise[: len(x)], sigma, 2 * i + j, 2 * len(levels))
                for j, x in enumerate((x0, x1))
            ]
            value, error = auroc(*scores)
            conditions = model.conditions(
                standard_error=error,
                sigma=sigma,
                noised=scale > 0,
                against=name,
                n_against=len(x1),
                density="mixture of classes" if model.denoiser.num_classes else "unconditional",
                mean_log_prob=scores[0].mean().item(),
                mean_log_prob_against=scores[1].mean().item(),
            )
            results[key] = Result(value, len(x0), conditions)
        return results
