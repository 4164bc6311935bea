r"""Distributions of σ during training, σ = F⁻¹(v) with v uniform.

A batch of n takes one v from each of the n strata [i/n, (i + 1)/n), in random order: each σ alone has the distribution
asked for, and the batch's mean loss, which differs by orders of magnitude between noise levels, varies less (the
low-discrepancy sampler of Kingma et al. 2021, arXiv:2107.00630, appendix I.1, with a jitter for each stratum).
Draws come from torch's global generator, which the training step seeds.
"""

import math
from typing import Annotated

import torch
from torch import Tensor

from flowdiff.errors import ConfigError
from flowdiff.options import Range, Sigma, checked


class NoiseDistribution:
    """Draws noise levels."""

    def __call__(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        """σ, (n,), positive."""
        raise NotImplementedError


def strata(n: int, device: torch.device | str) -> Tensor:
    """n numbers in [0, 1], (n,), one from each of n equal intervals, in random order."""
    return (torch.randperm(n, device=device) + torch.rand(n, device=device)) / n


class LogNormal(NoiseDistribution):
    """log σ ~ N(p_mean, p_std²) (Karras et al. 2022, table 1)."""

    @checked
    def __init__(
        self, p_mean: Annotated[float, Range(-20, 20)] = -1.2, p_std: Annotated[float, Range(0, 20, above=True)] = 1.2
    ) -> None:
        self.p_mean, self.p_std = p_mean, p_std

    def __call__(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        places = strata(n, device).clamp(1e-6, 1 - 1e-6)  # float32 can draw 0 and 1
        return (self.p_mean + self.p_std * torch.special.ndtri(places)).exp()


class LogUniform(NoiseDistribution):
    """log σ uniform between log sigma_min and log sigma_max."""

    @checked
    def __init__(self, sigma_min: Sigma = 0.002, sigma_max: Sigma = 80.0) -> None:
        if sigma_min >= sigma_max:
            raise ConfigError("noise.sigma_min", sigma_min, f"must be below noise.sigma_max={sigma_max}")
        self.low, self.high = math.log(sigma_min), math.log(sigma_max)

    def __call__(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        return (self.low + (self.high - self.low) * strata(n, device)).exp()


class Fixed(NoiseDistribution):
    """One noise level: a density of the data at σ_min and nothing else, as other flows are trained."""

    @checked
    def __init__(self, sigma: Sigma) -> None:
        self.sigma = sigma

    def __call__(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        return torch.full((n,), float(self.sigma), device=device)
