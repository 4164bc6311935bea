r"""Samplers that only a flow has: x = f^{-1}(z; sigma, c), z ~ N(0, I), is an exact sample of p(x; sigma, c).

Inversion         x at sigma_start, then D(x; sigma_start): one inversion, one evaluation.
InversionDenoise  x at sigma_start, then Heun's method from there down to 0.

`sigma_start` is the knob between the two ways of sampling: low, and the flow alone makes the image; high,
and it is left to the score. D has less variance than the data, by what it takes for noise, so a plain
`Inversion` wants a small sigma_start. TarFlow (arXiv:2412.06329) denoises its inverted samples in the
same way, by its own score.
"""

import math
from typing import Annotated, Any

from torch import Tensor

from flowdiff.denoisers.wrappers import Denoise
from flowdiff.options import NonNegative, Range, Sigma, Steps, checked
from flowdiff.samplers.base import Sampler
from flowdiff.samplers.noise import NoiseSource
from flowdiff.samplers.ode import Heun


def sample_by_inverse(denoiser: Any, noise: NoiseSource, sigma: float, labels: Tensor | None) -> Tensor:
    """Samples (n, *shape) of p(x; sigma, labels) by the flow's inverse."""
    z = noise()
    return denoiser.inverse(z, z.new_full((len(z),), sigma), labels)


class Inversion(Sampler):
    """Invert the flow at `sigma_start`, then denoise once: 1 inversion and 1 evaluation.

    Args:
        sigma_start: the noise level of the inversion.
    """

    needs_inverse = True

    @checked
    def __init__(self, sigma_start: Sigma) -> None:
        super().__init__(num_steps=1)
        self.sigma_start: float = float(sigma_start)

    def start(self, denoiser: Any, noise: NoiseSource, sigma: float, labels: Tensor | None) -> Tensor:
        return sample_by_inverse(denoiser, noise, sigma, labels)

    def step(self, denoise: Denoise, noise: NoiseSource, x: Tensor, sigma: float, to: float) -> Tensor:
        return denoise(x, sigma)


class InversionDenoise(Heun):
    """Invert the flow at `sigma_start`, then Heun's method down to 0. 1 inversion and 2N - 1 evaluations.

    Args:
        sigma_start: the noise level of the inversion.
        num_steps: N, the steps from sigma_start down.
        s_churn, s_tmin, s_tmax, s_noise: as for `Heun`.
    """

    needs_inverse = True

    @checked
    def __init__(
        self,
        sigma_start: Sigma,
        num_steps: Steps,
        s_churn: NonNegative = 0.0,
        s_tmin: NonNegative = 0.0,
        s_tmax: Annotated[float, Range(0)] = math.inf,
        s_noise: NonNegative = 1.0,
    ) -> None:
        super().__init__(num_steps, s_churn, s_tmin, s_tmax, s_noise)
        self.sigma_start: float = float(sigma_start)

    def start(self, denoiser: Any, noise: NoiseSource, sigma: float, labels: Tensor | None) -> Tensor:
        return sample_by_inverse(denoiser, noise, sigma, labels)
