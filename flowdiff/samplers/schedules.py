r"""Discretisations of the noise level: sigma_max = s_0 > s_1 > ... > s_{N-1} = sigma_min, s_N = 0.

A schedule is a monotone map F of sigma and N equal steps in F:

    s_i = F^{-1}( F(sigma_max) + i/(N-1) (F(sigma_min) - F(sigma_max)) ),   i = 0 .. N-1,     s_N = 0

| schedule  | F(sigma)              | where the steps lie                                  |
|-----------|-----------------------|-----------------------------------------------------|
| Karras    | sigma^(1/rho)         | mostly at low noise (EDM, arXiv:2206.00364, eq. 5)   |
| Geometric | log sigma             | equally many in every octave (NCSN, arXiv:1907.05600)|
| Linear    | sigma                 | mostly at high noise                                 |
| Cosine    | arctan(sigma / scale) | around sigma = scale (arXiv:2102.09672, in sigma)    |
| Vp        | t(sigma)              | as a VP diffusion's equal steps (arXiv:2011.13456)   |
| Polyexponential | (log sigma / sigma_min)^(1/rho) | more of them at low noise than Geometric |
| Adaptive  | the way that D goes   | where the trained model has most to do               |

The cosine schedule of Nichol & Dhariwal has alpha_bar = cos^2(pi t / 2), so sigma = sqrt(1/alpha_bar - 1) =
tan(pi t / 2). The VP process of Song et al. has sigma(t)^2 + 1 = exp(beta_d t^2 / 2 + beta_min t), t in (0, 1]
(EDM's table 1). `Adaptive` has

    F(sigma) = (1 - even) G(sigma) + even log sigma,   dG/dlog sigma ~ (E |dD/dlog sigma|^2)^(1/2)

along the probability-flow ODE's paths of the model that is sampled: Euler's step is exact where D stands still,
so equal steps in G make errors of equal size. Everything is float64; the two ends are exact, so one step is
[sigma_max, 0].
"""

import copy
from typing import Annotated, Any

import torch
from torch import Tensor

from flowdiff.denoisers.wrappers import Denoise
from flowdiff.errors import ConfigError
from flowdiff.options import Positive, Range, Sigma, Steps, checked, snake_case
from flowdiff.samplers.noise import NoiseSource


class Schedule:
    """A discretisation of sigma. A subclass gives the map `warp` (F above) and its inverse `unwarp`.

    Args:
        sigma_min: the last noise level above zero, > 0.
        sigma_max: the first noise level, > sigma_min.
    """

    @checked
    def __init__(self, sigma_min: Sigma, sigma_max: Sigma) -> None:
        _check_range("sigma_max", sigma_min, sigma_max)
        self.sigma_min = float(sigma_min)
        self.sigma_max = float(sigma_max)

    def warp(self, sigma: Tensor) -> Tensor:
        """F(sigma): strictly increasing on (0, inf)."""
        raise NotImplementedError

    def unwarp(self, value: Tensor) -> Tensor:
        """The inverse of `warp`."""
        raise NotImplementedError

    def fit(self, denoiser: Any, noise: NoiseSource, labels: Tensor | None) -> "Schedule":
        """This schedule as it is for a denoiser, where it is made from the model.

        Args:
            denoiser: `D = denoiser(x, sigma, labels)`.
            noise: standard normals (n, *shape) at each call.
            labels: (n,) or None.
        """
        return self

    @property
    def name(self) -> str:
        """The schedule's name in the configuration."""
        return snake_case(type(self).__name__)

    @checked
    def __call__(self, num_steps: Steps, sigma_max: Sigma | None = None) -> Tensor:
        """The noise levels of one run.

        Args:
            num_steps: N >= 1, the number of steps.
            sigma_max: start here, not at `self.sigma_max` (`sigma_start` of the inversion samplers); one step may
                start at sigma_min.

        Returns:
            (num_steps + 1,) float64, strictly decreasing, the last one 0.
        """
        if sigma_max is not None:
            _check_range("sigma_start", self.sigma_min, sigma_max, equal=num_steps == 1)
        start = self.sigma_max if sigma_max is None else float(sigma_max)
        ends = self.warp(torch.tensor([start, self.sigma_min], dtype=torch.float64))
        steps = torch.arange(num_steps, dtype=torch.float64) / max(num_steps - 1, 1)
        sigmas = self.unwarp(ends[0] + steps * (ends[1] - ends[0]))
        sigmas[-1] = self.sigma_min
        sigmas[0] = start
        return torch.cat([sigmas, sigmas.new_zeros(1)])


class Karras(Schedule):
    """Equal steps in sigma^(1/rho): Karras et al. 2022, equation 5."""

    @checked
    def __init__(self, sigma_min: Sigma, sigma_max: Sigma, rho: Positive = 7.0) -> None:
        super().__init__(sigma_min, sigma_max)
        self.rho = rho

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


class Polyexponential(Schedule):
    """Equal steps in (log sigma / sigma_min)^(1/rho), k-diffusion's `get_sigmas_polyexponential`.

    Args:
        rho: 1 is `Geometric`, more puts more steps at low noise.
    """

    @checked
    def __init__(self, sigma_min: Sigma, sigma_max: Sigma, rho: Positive = 1.0) -> None:
        super().__init__(sigma_min, sigma_max)
        self.rho = rho

    def warp(self, sigma: Tensor) -> Tensor:
        return (sigma / self.sigma_min).log().clamp(min=0) ** (1 / self.rho)

    def unwarp(self, value: Tensor) -> Tensor:
        return self.sigma_min * (value**self.rho).exp()


class Vp(Schedule):
    """Equal steps in the time t of a variance-preserving diffusion: Song et al. 2021, in EDM's form.

    Args:
        beta_d, beta_min: of the process; its own t from 1 to 0.001 are sigma from 152 to 0.01.
    """

    @checked
    def __init__(self, sigma_min: Sigma, sigma_max: Sigma, beta_d: Positive = 19.9, beta_min: Positive = 0.1) -> None:
        super().__init__(sigma_min, sigma_max)
        self.beta_d = beta_d
        self.beta_min = beta_min

    def warp(self, sigma: Tensor) -> Tensor:
        log_scale = (sigma**2).log1p()
        return 2 * log_scale / (self.beta_min + (self.beta_min**2 + 2 * self.beta_d * log_scale).sqrt())

    def unwarp(self, value: Tensor) -> Tensor:
        return (self.beta_d * value**2 / 2 + self.beta_min * value).expm1().sqrt()


class Cosine(Schedule):
    """Equal steps in arctan(sigma / scale): Nichol & Dhariwal 2021 with scale 1 (data of unit variance).

    Args:
        scale: the sigma around which the steps are densest.
    """

    @checked
    def __init__(self, sigma_min: Sigma, sigma_max: Sigma, scale: Positive = 1.0) -> None:
        super().__init__(sigma_min, sigma_max)
        self.scale = scale

    def warp(self, sigma: Tensor) -> Tensor:
        return torch.atan(sigma / self.scale)

    def unwarp(self, value: Tensor) -> Tensor:
        return self.scale * torch.tan(value)


class Adaptive(Geometric):
    """Equal steps in the way that the model's D goes; `Geometric` until `fit` has measured it.

    Args:
        grid: noise levels at which it is measured, >= 2: so many evaluations, once.
        even: share of F that is log sigma, in (0, 1]: no step becomes too long where D hardly moves.
    """

    @checked
    def __init__(
        self,
        sigma_min: Sigma,
        sigma_max: Sigma,
        grid: Annotated[int, Range(2, 10_000)] = 64,
        even: Annotated[float, Range(0, 1, above=True)] = 0.1,
    ) -> None:
        super().__init__(sigma_min, sigma_max)
        self.grid = grid
        self.even = even
        self._levels: Tensor | None = None  # log sigma and F there, both increasing
        self._way: Tensor | None = None

    def fit(self, denoiser: Any, noise: NoiseSource, labels: Tensor | None) -> "Adaptive":
        """Follow n paths down the grid by Euler's method; rows that are not finite don't count."""
        denoise = Denoise(denoiser, labels)
        levels = Geometric(self.sigma_min, self.sigma_max)(self.grid)[:-1].tolist()
        x = levels[0] * noise()
        denoised = denoise(x, levels[0])
        changes = []
        for sigma, to in zip(levels, levels[1:], strict=False):
            x = denoised + to / sigma * (x - denoised)
            before, denoised = denoised, denoise(x, to)
            changes.append((denoised - before).double().flatten(1).square().mean(1).cpu())
        change = torch.stack(changes)
        change = change.nan_to_num(posinf=0.0).sum(1).div(change.isfinite().sum(1).clamp(min=1)).sqrt()
        share = change / change.sum() if change.sum() > 0 else torch.full_like(change, 1 / len(change))
        steps = (1 - self.even) * share + self.even / len(change)
        fitted = copy.copy(self)
        fitted._levels = torch.tensor(levels, dtype=torch.float64).log().flip(0)
        fitted._way = torch.cat([steps.new_zeros(1), steps.flip(0).cumsum(0)])
        return fitted

    def warp(self, sigma: Tensor) -> Tensor:
        if self._levels is None or self._way is None:
            return super().warp(sigma)
        return _interpolate(sigma.log(), self._levels, self._way)

    def unwarp(self, value: Tensor) -> Tensor:
        if self._levels is None or self._way is None:
            return super().unwarp(value)
        return _interpolate(value, self._way, self._levels).exp()


def _interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """The piecewise linear function through (xs, ys), xs increasing; beyond its ends as in the last pieces."""
    i = torch.searchsorted(xs, x).clamp(1, len(xs) - 1)
    return ys[i - 1] + (x - xs[i - 1]) * (ys[i] - ys[i - 1]) / (xs[i] - xs[i - 1])


def _check_range(upper_key: str, sigma_min: float, upper: float, equal: bool = False) -> None:
    """sigma_min < upper (or ≤); the message names whichever is wrong."""
    if upper_key == "sigma_max" and sigma_min >= upper:
        raise ConfigError("sigma_min", sigma_min, f"must be smaller than sigma_max={upper}")
    if sigma_min > upper or (sigma_min == upper and not equal):
        raise ConfigError(upper_key, upper, f"must be {'at least' if equal else 'larger than'} sigma_min={sigma_min}")
