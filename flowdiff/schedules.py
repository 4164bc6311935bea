r"""Discretisations of the noise level: sigma_max = s_0 > s_1 > ... > s_{N-1} = sigma_min, s_N = 0.

A schedule is a monotone map F of sigma and N equal steps in F:

    s_i = F^{-1}( F(sigma_max) + i/(N-1) (F(sigma_min) - F(sigma_max)) ),   i = 0 .. N-1,     s_N = 0

| schedule  | F(sigma)              | where the steps lie                                  |
|-----------|-----------------------|-----------------------------------------------------|
| Karras    | sigma^(1/rho)         | mostly at low noise (EDM, arXiv:2206.00364, eq. 5)   |
| Geometric | log sigma             | equally many in every octave (NCSN, arXiv:1907.05600)|
| Linear    | sigma                 | mostly at high noise                                 |
| Cosine    | arctan(sigma / scale) | around sigma = scale (arXiv:2102.09672, in sigma)    |

The cosine schedule of Nichol & Dhariwal has alpha_bar = cos^2(pi t / 2), so sigma = sqrt(1/alpha_bar - 1) =
tan(pi t / 2). Everything is float64; the two ends are exact, so one step is [sigma_max, 0].
"""

import torch
from torch import Tensor

from flowdiff.errors import ConfigError, at_least, is_number


class Schedule:
    """A discretisation of sigma. A subclass gives the map ``warp`` (F above) and its inverse ``unwarp``.

    Args:
        sigma_min: the last noise level above zero, > 0.
        sigma_max: the first noise level, > sigma_min.
    """

    def __init__(self, sigma_min: float, sigma_max: float) -> None:
        _check_range("sigma_max", sigma_min, sigma_max)
        self.sigma_min = float(sigma_min)
        self.sigma_max = float(sigma_max)

    def warp(self, sigma: Tensor) -> Tensor:
        """F(sigma): strictly increasing on (0, inf)."""
        raise NotImplementedError

    def unwarp(self, value: Tensor) -> Tensor:
        """The inverse of ``warp``."""
        raise NotImplementedError

    def __call__(self, num_steps: int, sigma_max: float | None = None) -> Tensor:
        """The noise levels of one run.

        Args:
            num_steps: N >= 1, the number of steps.
            sigma_max: start here, not at ``self.sigma_max`` (``sigma_start`` of the inversion samplers).

        Returns:
            (num_steps + 1,) float64, strictly decreasing, the last one 0.
        """
        at_least("num_steps", num_steps, 1)
        if sigma_max is not None:
            _check_range("sigma_start", self.sigma_min, sigma_max)
        start = self.sigma_max if sigma_max is None else float(sigma_max)
        ends = self.warp(torch.tensor([start, self.sigma_min], dtype=torch.float64))
        steps = torch.arange(num_steps, dtype=torch.float64) / max(num_steps - 1, 1)
        sigmas = self.unwarp(ends[0] + steps * (ends[1] - ends[0]))
        sigmas[-1] = self.sigma_min
        sigmas[0] = start
        return torch.cat([sigmas, sigmas.new_zeros(1)])


class Karras(Schedule):
    """Equal steps in sigma^(1/rho): Karras et al. 2022, equation 5."""

    def __init__(self, sigma_min: float, sigma_max: float, rho: float = 7.0) -> None:
        super().__init__(sigma_min, sigma_max)
        self.rho = _positive("schedule.rho", rho)

    def warp(self, sigma: Tensor) -> Tensor:
        return sigma ** (1 / self.rho)

    def unwarp(self, value: Tensor) -> Tensor:
        return value**self.rho


class Geometric(Schedule):
    """Equal steps in log sigma: Song & Ermon 2019."""

    def warp(self, sigma: Tensor) -> Tensor:
        return sigma.log()

    def unwarp(self, value: Tensor) -> Tensor:
        return value.exp()


class Linear(Schedule):
    """Equal steps in sigma. Wants many steps: with few, all but the last are far above the data's scale."""

    def warp(self, sigma: Tensor) -> Tensor:
        return sigma

    def unwarp(self, value: Tensor) -> Tensor:
        return value


class Cosine(Schedule):
    """Equal steps in arctan(sigma / scale): Nichol & Dhariwal 2021 with scale 1 (data of unit variance).

    Args:
        scale: the sigma around which the steps are densest.
    """

    def __init__(self, sigma_min: float, sigma_max: float, scale: float = 1.0) -> None:
        super().__init__(sigma_min, sigma_max)
        self.scale = _positive("schedule.scale", scale)

    def warp(self, sigma: Tensor) -> Tensor:
        return torch.atan(sigma / self.scale)

    def unwarp(self, value: Tensor) -> Tensor:
        return self.scale * torch.tan(value)


def _positive(key: str, value: float) -> float:
    if not is_number(value) or value <= 0:
        raise ConfigError(key, value, "must be a number > 0")
    return float(value)


def _check_range(upper_key: str, sigma_min: float, upper: float) -> None:
    """0 < sigma_min < upper, both finite; the message names whichever is wrong."""
    _positive("sigma_min", sigma_min)
    _positive(upper_key, upper)
    if upper_key == "sigma_max" and sigma_min >= upper:
        raise ConfigError("sigma_min", sigma_min, f"must be smaller than sigma_max={upper}")
    if sigma_min >= upper:
        raise ConfigError(upper_key, upper, f"must be larger than sigma_min={sigma_min}")
