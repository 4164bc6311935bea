r"""Integrators of the probability-flow ODE dx/dsigma = d(x, sigma) = (x - D(x; sigma)) / sigma.

Euler:  x' = x + (s' - s) d(x, s)                               1 evaluation a step, N in all
Heun:   x~ = x + (s' - s) d(x, s)
        x' = x + (s' - s) (d(x, s) + d(x~, s')) / 2             2 evaluations, 1 in the last step: 2N - 1

Heun's steps may be preceded by churn (Karras et al. 2022, arXiv:2206.00364, algorithm 2): add noise, so
that x is at s^ = (1 + gamma) s, and integrate from there:

    gamma = min(s_churn / N, sqrt(2) - 1) if s_tmin <= s <= s_tmax else 0
    x^    = x + s_noise sqrt(s^^2 - s^2) eps
"""

import math
from typing import Annotated

from torch import Tensor

from flowdiff.denoisers.wrappers import Denoise
from flowdiff.errors import ConfigError
from flowdiff.options import NonNegative, Range, Steps, checked
from flowdiff.samplers.base import Sampler
from flowdiff.samplers.noise import NoiseSource


class Euler(Sampler):
    """The probability-flow ODE by Euler's method, error O(1/N). N evaluations."""

    def step(self, denoise: Denoise, noise: NoiseSource, x: Tensor, sigma: float, to: float) -> Tensor:
        denoised = denoise(x, sigma)
        if to == 0:
            return denoised
        return x + (to - sigma) * (x - denoised) / sigma


class Heun(Sampler):
    """The probability-flow ODE by Heun's method, error O(1/N^2), with EDM's churn. 2N - 1 evaluations.

    Args:
        num_steps: N.
        s_churn: amount of noise added in all, spread over the steps; 0 is the deterministic sampler.
        s_tmin, s_tmax: churn only where s_tmin <= sigma <= s_tmax.
        s_noise: scale of the noise added, 1 or a little more (EDM: 1.003 to 1.007).
    """

    @checked
    def __init__(
        self,
        num_steps: Steps,
        s_churn: NonNegative = 0.0,
        s_tmin: NonNegative = 0.0,
        s_tmax: Annotated[float, Range(0)] = math.inf,
        s_noise: NonNegative = 1.0,
    ) -> None:
        super().__init__(num_steps)
        if s_tmin > s_tmax:
            raise ConfigError("s_tmin", s_tmin, f"must not be larger than s_tmax={s_tmax}")
        self.s_churn = s_churn
        self.s_tmin = s_tmin
        self.s_tmax = s_tmax
        self.s_noise = s_noise

    def step(self, denoise: Denoise, noise: NoiseSource, x: Tensor, sigma: float, to: float) -> Tensor:
        gamma = 0.0
        if self.s_tmin <= sigma <= self.s_tmax:
            gamma = min(self.s_churn / self.num_steps, math.sqrt(2) - 1)
        sigma_hat = sigma * (1 + gamma)
        if gamma > 0:
            x = x + self.s_noise * math.sqrt(sigma_hat**2 - sigma**2) * noise()
        denoised = denoise(x, sigma_hat)
        if to == 0:
            return denoised
        slope = (x - denoised) / sigma_hat
        x_euler = x + (to - sigma_hat) * slope
        slope_next = (x_euler - denoise(x_euler, to)) / to
        return x + (to - sigma_hat) * (slope + slope_next) / 2


class HeunStochastic(Heun):
    """Heun's method with the churn that EDM publishes for ImageNet-64 (its table 5). Arguments as for `Heun`."""

    @checked
    def __init__(
        self,
        num_steps: Steps,
        s_churn: NonNegative = 40.0,
        s_tmin: NonNegative = 0.05,
        s_tmax: Annotated[float, Range(0)] = 50.0,
        s_noise: NonNegative = 1.003,
    ) -> None:
        super().__init__(num_steps, s_churn, s_tmin, s_tmax, s_noise)
