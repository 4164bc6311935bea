r"""DPM-Solver++(S), stochastic, of second order by an evaluation on the way (Lu et al. 2022, arXiv:2211.01095).

    u  = s^(1-r) s'^r                                      between s and s', in log sigma
    x~ = D + (u_down / s)(x - D) + s_noise u_up eps        an ancestral step to u
    D' = (1 - 1/(2r)) D + D(x~; u) / (2r)
    x' = D' + (s'_down / s)(x - D') + s_noise s'_up eps'   an ancestral step to s', with D' in place of D

`down` and `up` are those of `ancestral_step`. k-diffusion's `sample_dpmpp_sde` is the same; eps and eps'
are here two independent draws, not two increments of one Brownian path.
"""

from typing import Annotated

from torch import Tensor

from flowdiff.denoisers.wrappers import Denoise
from flowdiff.options import NonNegative, Range, Steps, checked
from flowdiff.samplers.ancestral import ancestral_step
from flowdiff.samplers.base import Sampler
from flowdiff.samplers.noise import NoiseSource


class DpmppSde(Sampler):
    """Two evaluations a step, one in the last: 2N - 1.

    Args:
        num_steps: N.
        eta: share of fresh noise, >= 0; 0 is the ODE.
        s_noise: scale of the noise added, >= 0.
        r: where between the levels the second evaluation is, in (0, 1].
    """

    @checked
    def __init__(
        self,
        num_steps: Steps,
        eta: NonNegative = 1.0,
        s_noise: NonNegative = 1.0,
        r: Annotated[float, Range(0, 1, above=True)] = 0.5,
    ) -> None:
        super().__init__(num_steps)
        self.eta, self.s_noise, self.r = eta, s_noise, r

    def step(self, denoise: Denoise, noise: NoiseSource, x: Tensor, sigma: float, to: float) -> Tensor:
        denoised = denoise(x, sigma)
        if to == 0:
            return denoised
        between = sigma ** (1 - self.r) * to**self.r
        second = denoise(self._move(x, denoised, noise, sigma, between), between)
        return self._move(x, denoised.lerp(second, 1 / (2 * self.r)), noise, sigma, to)

    def _move(self, x: Tensor, denoised: Tensor, noise: NoiseSource, sigma: float, to: float) -> Tensor:
        down, up = ancestral_step(sigma, to, self.eta)
        x = denoised + down / sigma * (x - denoised)
        return x + self.s_noise * up * noise() if up > 0 else x
