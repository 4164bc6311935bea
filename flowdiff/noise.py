r"""Distributions of σ during training. Draws come from torch's global generator, which the training step seeds."""

import math

import torch
from torch import Tensor

from flowdiff.errors import ConfigError, positive


class NoiseDistribution:
    """Draws noise levels."""

    def __call__(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        """σ, (n,), positive."""
        raise NotImplementedError


class LogNormal(NoiseDistribution):
    """log σ ~ N(p_mean, p_std²) (Karras et al. 2022, table 1)."""

    def __init__(self, p_mean: float = -1.2, p_std: float = 1.2) -> None:
        self.p_mean, self.p_std = p_mean, positive("noise.p_std", p_std)

    def __call__(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        return (self.p_mean + self.p_std * torch.randn(n, device=device)).exp()


class LogUniform(NoiseDistribution):
    """log σ uniform between log sigma_min and log sigma_max, stratified over the batch."""

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        positive("noise.sigma_min", sigma_min)
        if sigma_min >= sigma_max:
            raise ConfigError("noise.sigma_min", sigma_min, f"must be below noise.sigma_max={sigma_max}")
        self.low, self.high = math.log(sigma_min), math.log(sigma_max)

    def __call__(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        strata = (torch.randperm(n, device=device) + torch.rand(n, device=device)) / n
        return (self.low + (self.high - self.low) * strata).exp()


class Fixed(NoiseDistribution):
    """One noise level: a density of the data at σ_min and nothing else, as other flows are trained."""

    def __init__(self, sigma: float) -> None:
        self.sigma = positive("noise.sigma", sigma)

    def __call__(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        return torch.full((n,), float(self.sigma), device=device)
