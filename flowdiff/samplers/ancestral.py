r"""Ancestral sampling: an Euler step of the probability-flow ODE past the next level, then noise up to it.

    sigma_up^2   = eta^2 sigma_to^2 (sigma_from^2 - sigma_to^2) / sigma_from^2
    sigma_down^2 = sigma_to^2 - sigma_up^2
    x' = x + (sigma_down - sigma_from) (x - D(x; sigma_from)) / sigma_from + sigma_up eps

eta = 1 has the variance of the DDPM posterior q(x_to | x_from, x0) (Ho et al. 2020, arXiv:2006.11239,
equation 7, written in sigma), eta = 0 is Euler's method; k-diffusion's `sample_euler_ancestral` is the
same step.
"""

import math

from torch import Tensor

from flowdiff.denoisers.wrappers import Denoise
from flowdiff.options import NonNegative, Steps, checked
from flowdiff.samplers.base import Sampler
from flowdiff.samplers.noise import NoiseSource


def ancestral_step(sigma_from: float, sigma_to: float, eta: float = 1.0) -> tuple[float, float]:
    """(sigma_down, sigma_up): how far to integrate, and how much noise to add, between two levels."""
    up = eta * math.sqrt(sigma_to**2 * (sigma_from**2 - sigma_to**2) / sigma_from**2)
    up = min(sigma_to, up)
    return math.sqrt(sigma_to**2 - up**2), up


class Ancestral(Sampler):
    """Euler steps with fresh noise at every level but the last. N evaluations.

    Args:
        num_steps: N.
        eta: share of fresh noise, >= 0; 0 is `Euler`, 1 the DDPM posterior.
    """

    @checked
    def __init__(self, num_steps: Steps, eta: NonNegative = 1.0) -> None:
        super().__init__(num_steps)
        self.eta = eta

    def step(self, denoise: Denoise, noise: NoiseSource, x: Tensor, sigma: float, to: float) -> Tensor:
        denoised = denoise(x, sigma)
        if to == 0:
            return denoised
        return self.move(x, denoised, noise, sigma, to)

    def move(self, x: Tensor, denoised: Tensor, noise: NoiseSource, sigma: float, to: float) -> Tensor:
        """x at the level `to` > 0 from x and D at the level `sigma`."""
        down, up = ancestral_step(sigma, to, self.eta)
        x = x + (down - sigma) * (x - denoised) / sigma
        return x + up * noise() if up > 0 else x


class Ddim(Ancestral):
    """Ancestral sampling without fresh noise: DDIM (Song et al. 2021, arXiv:2010.02502). N evaluations.

    Args:
        num_steps: N.
        eta: as for `Ancestral`, and the eta of that paper.
    """

    @checked
    def __init__(self, num_steps: Steps, eta: NonNegative = 0.0) -> None:
        super().__init__(num_steps, eta)
