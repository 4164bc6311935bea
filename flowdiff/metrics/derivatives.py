r"""What the derivatives of score and log-density say of a model, in float64 where the device has it.

    conservative     ‖J − Jᵀ‖ / ‖J‖ (Frobenius), J = ∂s/∂x the Jacobian of the score: 0 for a gradient field, up to
                     rounding; a free network's D gives s = (D − x)/σ², whose curl nothing forbids (Chao et al. 2022,
                     arXiv:2209.12753)
    fokker_planck    rms(r)/rms(σ ∂σ log p), r the residual of `objectives.fokker_planck`: 0 if the densities of all
                     noise levels are one diffusion

at x = x0 + σε. Up to `exact_dims` coordinates J is exact, row by row; above, with probes v of independent signs,

    E |(J − Jᵀ)v|² = ‖J − Jᵀ‖²,     E |Jᵀv|² = ‖J‖²,     E vᵀJv = tr J = Δ log p,

and r², which a noisy r would overestimate, is the mean of r·r' over pairs of different probes.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from flowdiff.errors import ConfigError
from flowdiff.metrics.base import Evaluand, Metric, Result
from flowdiff.metrics.likelihood import no_likelihood
from flowdiff.objectives.fokker_planck import residual, slopes
from flowdiff.options import Count, Length, Range, Sigma, checked
from flowdiff.quantities import Quantity

Field = Callable[[Tensor], Tensor]


def jacobian(field: Field, x: Tensor) -> Tensor:
    """J[b, i, j] = ∂field_i/∂x_j of each sample of x (B, *shape), (B, d, d); samples do not interact."""
    value, pull = torch.func.vjp(field, x)  # type: ignore[misc]
    d = value[0].numel()
    basis = torch.eye(d, dtype=x.dtype, device=x.device).view(d, *value.shape[1:])
    return torch.stack([pull(row.expand_as(value))[0].flatten(1) for row in basis], 1)


def score_of(denoiser: nn.Module, x: Tensor, sigma: float, labels: Tensor | None) -> Tensor:
    """s(x; σ, c), shape of x: that of a density, or (D − x)/σ²."""
    if getattr(denoiser, "has_density", False):
        return denoiser.score(x, sigma, labels)  # type: ignore[operator]
    return (denoiser(x, sigma, labels) - x) / sigma**2


class DerivativeMetric(Metric):
    """Base of the metrics made of derivatives. A subclass gives its `name` and measures a noise level.

    Args:
        sigmas: noise levels.
        num_images: rows of the split used; null is all of them.
        exact_dims: up to as many coordinates no random probes are needed.
        num_probes: for each image, where there are more.
    """

    name: str
    fewest_probes = 1

    @checked
    def __init__(
        self,
        sigmas: Annotated[Sequence[Sigma], Length(1, 100)],
        num_images: Count | None = 64,
        exact_dims: Annotated[int, Range(0, 65536)] = 64,
        num_probes: Annotated[int, Range(1, 10000)] = 4,
    ) -> None:
        self.sigmas = [float(sigma) for sigma in sigmas]
        self.num_images = num_images
        self.exact_dims = exact_dims
        if num_probes < self.fewest_probes:
            raise ConfigError("num_probes", num_probes, f"must be a whole number from {self.fewest_probes} up")
        self.num_probes = num_probes

    def keys(self, model: Evaluand) -> list[str]:
        """One for each noise level."""
        return [f"{self.name}/{sigma:g}" for sigma in self.sigmas]

    def squares(
        self, denoiser: nn.Module, x: Tensor, sigma: float, labels: Tensor | None, probes: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Squares of the numerator and of the denominator, (B,) each; exact where there are no probes."""
        raise NotImplementedError

    def __call__(self, model: Evaluand) -> dict[str, Result]:
        """Keys `<name>/<sigma>`: the root of the ratio of the squares' means, which are among the conditions."""
        x0, noise, labels = model.noised(self.num_images)
        dtype = torch.float32 if torch.device(model.device).type == "mps" else torch.float64
        denoiser = model.denoiser
        if isinstance(denoiser, nn.Module):
            denoiser = copy.deepcopy(denoiser).to(dtype)
        number = 0 if x0[0].numel() <= self.exact_dims else self.num_probes
        generator = torch.Generator().manual_seed(model.seed)
        signs = [torch.randint(0, 2, x0.shape, generator=generator) * 2 - 1 for _ in range(number)]
        results = {}
        for turn, sigma in enumerate(self.sigmas):
            parts = []
            for rows in model.slices(len(x0), self.name.replace("_", "-"), turn, len(self.sigmas)):
                x = (x0[rows].to(dtype) + sigma * noise[rows].to(dtype)).to(model.device)
                probes = [v[rows].to(x) for v in signs]
                parts.append(self.squares(denoiser, x, sigma, model.labels(labels[rows]), probes))
            above, below = (torch.cat(column).double().mean().item() for column in zip(*parts, strict=True))
            rms, scale = max(above, 0.0) ** 0.5, below**0.5
            value = rms / scale if scale > 0 else 0.0
            conditions = model.conditions(
                sigma=sigma, rms=rms, rms_of_whole=scale, num_probes=number or "exact", dtype=str(dtype).split(".")[1]
            )
            results[f"{self.name}/{sigma:g}"] = Result(value, len(x0), conditions)
        return results


class Conservative(DerivativeMetric):
    """The asymmetry ‖J − Jᵀ‖/‖J‖ of the score's Jacobian."""

    name = "conservative"
    quantities = (Quantity("conservative/*", better="lower", plotted="conservative/0.2", column="conservative/0.2"),)

    def squares(
        self, denoiser: nn.Module, x: Tensor, sigma: float, labels: Tensor | None, probes: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        def score(points: Tensor) -> Tensor:
            return score_of(denoiser, points, sigma, labels)

        if not probes:
            j = jacobian(score, x)
            return (j - j.mT).square().sum((1, 2)), j.square().sum((1, 2))
        _, pull = torch.func.vjp(score, x)  # type: ignore[misc]
        above, below = [], []
        for v in probes:
            along, back = torch.func.jvp(score, (x,), (v,))[1], pull(v)[0]
            above.append((along - back).square().flatten(1).sum(1))
            below.append(back.square().flatten(1).sum(1))
        return torch.stack(above).mean(0), torch.stack(below).mean(0)


class FokkerPlanck(DerivativeMetric):
    """The residual of the equation that joins the noise levels, over ∂σ log p."""

    name = "fokker_planck"
    quantities = (Quantity("fokker_planck/*", better="lower", plotted="fokker_planck/0.2", column="fokker_planck/0.2"),)
    fewest_probes = 2

    def unfit(self, model: Evaluand) -> str | None:
        """Needs a normalised density."""
        return no_likelihood(model)

    def squares(
        self, denoiser: nn.Module, x: Tensor, sigma: float, labels: Tensor | None, probes: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        levels = torch.full((len(x),), sigma, dtype=x.dtype, device=x.device)

        def log_prob(points: Tensor, sigmas: Tensor) -> Tensor:
            return denoiser.log_prob(points, sigmas, labels)  # type: ignore[operator]

        found = [slopes(log_prob, x, levels, v) for v in probes or [torch.zeros_like(x)]]
        by_sigma, score = found[0].by_sigma, found[0].score
        whole = (levels * by_sigma).square()
        if not probes:
            hessian = jacobian(lambda points: score_of(denoiser, points, sigma, labels), x)
            laplacian = hessian.diagonal(dim1=1, dim2=2).sum(1)
            return residual(by_sigma, score, laplacian, levels).square(), whole
        r = torch.stack([residual(by_sigma, score, one.curvature, levels) for one in found])
        m = len(r)
        return (r.sum(0).square() - r.square().sum(0)) / (m * (m - 1)), whole
