r"""Samplers that use the evaluations of earlier steps again: high order at one evaluation a step.

Dpmpp2mSde   DPM-Solver++(2M), its stochastic form (Lu et al. 2022, arXiv:2211.01095), from s_{i-1}, s to s':
             D' = D + (D - D_old) / (2 r),   r = log(s_{i-1} / s) / log(s / s')
             x' = D' + a (x - D') + s_noise s' (1 - (s'/s)^(2 eta))^(1/2) eps,   a = (s'/s)^(1 + eta)
Dpmpp2m      the same with eta = 0: the ODE
Lms          Adams-Bashforth: d = (x - D) / s as a polynomial through its last `order` values, integrated
             exactly from s to s', also to s' = 0, where the other samplers return D

As in k-diffusion's `sample_dpmpp_2m_sde` (midpoint), `sample_dpmpp_2m` and `sample_lms`.
"""

import math
from typing import Annotated

import numpy as np
from torch import Tensor

from flowdiff.denoisers.wrappers import Denoise
from flowdiff.options import NonNegative, Range, Steps, checked
from flowdiff.samplers.base import Sampler, Walk
from flowdiff.samplers.noise import NoiseSource


class Dpmpp2m(Sampler):
    """DPM-Solver++(2M), error O(1/N^2). N evaluations."""

    eta, s_noise = 0.0, 1.0

    def walk(self) -> Walk:
        return Dpmpp2mWalk(self)


class Dpmpp2mSde(Dpmpp2m):
    """DPM-Solver++(2M) with fresh noise in each step but the last. N evaluations.

    Args:
        num_steps: N.
        eta: amount of fresh noise, >= 0; 0 is `Dpmpp2m`.
        s_noise: scale of the noise added, >= 0.
    """

    @checked
    def __init__(self, num_steps: Steps, eta: NonNegative = 1.0, s_noise: NonNegative = 1.0) -> None:
        super().__init__(num_steps)
        self.eta, self.s_noise = eta, s_noise


class Dpmpp2mWalk(Walk):
    """Remembers the last level and D there."""

    sampler: Dpmpp2m

    def __init__(self, sampler: Dpmpp2m) -> None:
        super().__init__(sampler)
        self.last: tuple[float, Tensor] | None = None  # s_{i-1} and D_old

    def step(self, denoise: Denoise, noise: NoiseSource, x: Tensor, sigma: float, to: float) -> Tensor:
        denoised = denoise(x, sigma)
        if to == 0:
            return denoised
        ahead = denoised
        if self.last is not None:
            above, before = self.last
            ahead = denoised + (denoised - before) * math.log(sigma / to) / (2 * math.log(above / sigma))
        self.last = sigma, denoised
        eta, s_noise = self.sampler.eta, self.sampler.s_noise
        x = ahead + (to / sigma) ** (1 + eta) * (x - ahead)
        up = s_noise * to * math.sqrt(1 - (to / sigma) ** (2 * eta))
        return x + up * noise() if up > 0 else x


class Lms(Sampler):
    """The probability-flow ODE by the linear multistep method. N evaluations.

    Args:
        num_steps: N.
        order: how many slopes are used, >= 1; 1 is `Euler`.
    """

    @checked
    def __init__(self, num_steps: Steps, order: Annotated[int, Range(1, 100)] = 4) -> None:
        super().__init__(num_steps)
        self.order = order

    def walk(self) -> Walk:
        return LmsWalk(self)


class LmsWalk(Walk):
    """Remembers the last `order` levels and slopes."""

    sampler: Lms

    def __init__(self, sampler: Lms) -> None:
        super().__init__(sampler)
        self.slopes: list[tuple[float, Tensor]] = []  # the latest last

    def step(self, denoise: Denoise, noise: NoiseSource, x: Tensor, sigma: float, to: float) -> Tensor:
        denoised = denoise(x, sigma)
        self.slopes = [*self.slopes, (sigma, (x - denoised) / sigma)][-self.sampler.order :]
        weights = adams_bashforth([level for level, _ in self.slopes], to)
        for weight, (_, slope) in zip(weights, self.slopes, strict=True):
            x = x + weight * slope
        return x


def adams_bashforth(levels: list[float], to: float) -> list[float]:
    """The integral from `levels[-1]` to `to` of each of the Lagrange polynomials on the levels."""
    nodes, weights = np.polynomial.legendre.leggauss(len(levels))
    half = (to - levels[-1]) / 2
    points = levels[-1] + half * (nodes + 1)
    found = []
    for j, level in enumerate(levels):
        factors = [(points - other) / (level - other) for k, other in enumerate(levels) if k != j]
        found.append(float(half * (weights * np.prod(factors, axis=0)).sum()))
    return found
