r"""The bits that a denoiser's errors imply: a likelihood for models without a density.

Densities q_σ that are one diffusion of a q_0 lose likelihood on a point x as fast as their denoiser errs (Guo, Shamai
& Verdú 2005, arXiv:cs/0412108; Verdú 2010, doi:10.1109/TIT.2010.2050800):

    −log q_0(x) = −log g_0(x) + ∫₀^∞ (E|D_τ − x|² − E|W_τ − x|²)/τ³ dτ,    D_τ = x_τ + τ² ∇log q_τ(x_τ),  x_τ = x + τε

for any other such g with its denoiser W, as KL(p_τ|q_τ) → 0 for τ → ∞; with the data's own p for g, the mean over the
data of the integral is KL(p|q). Here g is the Gaussian of each class that the Wiener filter W belongs to
(`data.statistics`), whose density is known, and both see the same noise. The result does not depend on g but for its
variance; the filter itself has exactly the Gaussian's bits.

`bits_per_dim` takes the density q_σ at x0 with σ = sigma_min > 0, of data that are dequantised but not noised. So q_σ
is what is called q_0 above: at τ it has become q at s = √(σ² + τ²), whose score, (D(x_τ; s) − x_τ)/s², gives

    D_τ = x_τ + (τ/s)² (D(x_τ; s) − x_τ).

No level below σ is asked for, and the bits are those of the same density of the same images as `bits_per_dim`'s.

**What it means.** The two are equal for densities that are one diffusion: closed forms, and a flow as far as its
residual of the Fokker–Planck equation is 0 (`metrics.derivatives`). Those that a trained flow has at its noise levels
are not blurs of each other, and the difference is informative: where its implied bits are fewer, its scores know more
of the data than its density does. A free network's D need not be any density's: its implied bits are what its errors
cost, at the price that they have for a density that makes the same ones.

The integrand in log τ vanishes as τ² below σ and as τ⁻² above the data and is smooth between: the trapezoidal rule
converges exponentially, and both tails are half of what the integrand is at their ends.
"""

import math
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from flowdiff.errors import ConfigError
from flowdiff.metrics.base import Evaluand, Metric, Result
from flowdiff.metrics.likelihood import bits_per_dim, standard_error
from flowdiff.options import Count, Length, Range, Sigma, checked
from flowdiff.quantities import Quantity

SMALLEST = 0.25  # of τ, in units of σ: below it the integrand falls as τ²


def excess(model: Evaluand, x: Tensor, labels: Tensor, sigma: float, taus: Tensor) -> Tensor:
    """(E|D_τ − x|² − E|W_τ − x|²)/τ², the integrand in log τ, of each x (N, *shape) at each τ of taus (L,): (N, L).

    In nats, float64, on the CPU. The expectations are over a pair ±ε of one normal draw, another one at each level, by
    the model's seed: of the error's difference what is odd in ε, which is nearly all that varies, cancels.
    """
    assert model.statistics is not None
    generator = torch.Generator().manual_seed(2**32 - 1 - model.seed)  # other numbers than those in x
    found = torch.empty(len(x), len(taus), dtype=torch.float64)
    for turn, tau in enumerate(taus.tolist()):
        level = math.hypot(sigma, tau)
        noise = torch.randn(x.shape, generator=generator)
        for rows in model.slices(len(x), "implied bits", turn, len(taus)):
            clean, classes = x[rows].to(model.device), model.labels(labels[rows])
            sigmas = torch.full((len(clean),), level, device=clean.device)
            total = torch.zeros(len(clean), dtype=torch.float64)
            for sign in (1, -1):
                step = sign * noise[rows].to(clean)
                noised = clean + tau * step
                # errors of D_τ in units of τ
                ours, linear = (
                    step.double() + tau / level**2 * (denoise(noised, sigmas, classes) - noised).double()
                    for denoise in (model.denoiser, model.statistics.wiener)
                )
                total += ((ours - linear) * (ours + linear)).flatten(1).sum(1).cpu() / 2
            found[rows, turn] = total
    return found


def integrate(values: Tensor, spacing: float) -> Tensor:
    """∫ over all of log τ of values (…, L) at equal distances, with tails ∝ τ² below and ∝ τ⁻² above them: (…)."""
    ends = (values[..., 0] + values[..., -1]) / 2
    return spacing * (values.sum(-1) - ends) + ends


class Implied(NamedTuple):
    """−log q_σ(x) of N images in nats, float64: implied by a denoiser, and how well that is known.

    Attributes:
        nats: (N,).
        change: (N,), by which every second level left out would have lowered it.
        gaussian: (N,), those of the Gaussian that it was compared with.
        tails: of the mean of `nats`, what lies outside the levels, extrapolated.
    """

    nats: Tensor
    change: Tensor
    gaussian: Tensor
    tails: float

    def errors(self, nats_per_unit: float) -> dict[str, float]:
        """For the record, in units of so many nats."""
        return {
            "quadrature_error": abs(self.change.mean().item()) / nats_per_unit,
            "noise_error": standard_error(self.change) / nats_per_unit,
            "tails": self.tails / nats_per_unit,
        }


class ImpliedBits(Metric):
    """Bits per dimension that the denoising errors imply, at sigma_min; at other noise levels, the negative
    log-likelihood of noised data as `nll_by_sigma` has it, in which lower levels have no part.

    The errors are among the conditions, in the unit of the value: `standard_error` over the images, as that of
    `bits_per_dim`; `quadrature_error`, the change of the mean when every second level is left out; `noise_error`, the
    standard error of that change, i.e. of the value for these very images; `tails`, what of the value lies
    outside the levels, extrapolated. `gaussian` is the value of the Gaussian.

    Args:
        num_levels: τ's, log-spaced from σ/4 to sigma_max.
        sigma_max: the largest.
        sigmas: noise levels beside sigma_min.
        num_images: rows of the split used; null is all of them, and then they are dequantised as for `bits_per_dim`.
    """

    quantities = (
        Quantity("implied_bits", "bits/dim", "lower", plotted="implied_bits", column="implied_bits"),
        Quantity("implied_nll/*", "nats/dim", "lower"),
    )

    @checked
    def __init__(
        self,
        num_levels: Annotated[int, Range(5, 10_000)] = 41,
        sigma_max: Sigma = 80.0,
        sigmas: Annotated[Sequence[Sigma], Length(0, 100)] = (),
        num_images: Count | None = 1000,
    ) -> None:
        self.num_levels = num_levels
        self.sigma_max = sigma_max
        self.sigmas = [float(sigma) for sigma in sigmas]
        self.num_images = num_images

    def unfit(self, model: Evaluand) -> str | None:
        """Needs integer images and the statistics of the training split."""
        if model.data.levels is None:
            return "latents have no levels" if model.data.has_images else "points have no levels"
        return "no statistics of the training split" if model.statistics is None else None

    def keys(self, model: Evaluand) -> list[str]:
        """`implied_bits`, and one for each further noise level."""
        return ["implied_bits", *(f"implied_nll/{sigma:g}" for sigma in self.sigmas)]

    def __call__(self, model: Evaluand) -> dict[str, Result]:
        """Keys `implied_bits` and `implied_nll/<sigma>`."""
        levels, dims = model.data.levels, math.prod(model.data.shape)
        assert levels is not None
        few = self.num_images is not None and self.num_images < len(model.data.images(model.split)[1])
        x0, noise, labels = model.noised(self.num_images if few else None)
        found = self.implied(model, x0, labels, model.sigma_min)
        bits = bits_per_dim(-found.nats, dims, levels)
        conditions = model.conditions(
            standard_error=standard_error(bits),
            **found.errors(dims * math.log(2)),
            gaussian=bits_per_dim(-found.gaussian, dims, levels).mean().item(),
            sigma=model.sigma_min,
            levels=levels,
            num_levels=self.num_levels,
            sigma_max=self.sigma_max,
        )
        results = {"implied_bits": Result(bits.mean().item(), len(bits), conditions)}
        for sigma in self.sigmas:
            found = self.implied(model, x0 + sigma * noise, labels, sigma)
            nll = found.nats / dims
            own = {"sigma": sigma, "gaussian": found.gaussian.mean().item() / dims}
            own |= {"standard_error": standard_error(nll), **found.errors(dims)}
            results[f"implied_nll/{sigma:g}"] = Result(nll.mean().item(), len(nll), conditions | own)
        return results

    def implied(self, model: Evaluand, x: Tensor, labels: Tensor, sigma: float) -> Implied:
        """−log q_σ of x (N, *shape) with labels (N,) at `sigma`.

        Raises:
            ConfigError: there is no level above it.
        """
        if self.sigma_max <= sigma:
            raise ConfigError("sigma_max", self.sigma_max, f"must be above the noise level of the density, {sigma:g}")
        assert model.statistics is not None
        first, last = math.log(SMALLEST * sigma), math.log(self.sigma_max)
        spacing = (last - first) / (self.num_levels - 1)
        taus = torch.linspace(first, last, self.num_levels, dtype=torch.float64).exp()
        integrand = excess(model, x, labels, sigma, taus)
        total = integrate(integrand, spacing)
        gaussian = -model.statistics.log_prob(x, sigma, labels if model.denoiser.num_classes else None).cpu()
        change = total - integrate(integrand[:, ::2], 2 * spacing)
        return Implied(gaussian + total, change, gaussian, integrand[:, [0, -1]].sum(1).mean().item() / 2)
