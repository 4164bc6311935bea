r"""What every sampler is: a walk down the noise levels s_0 > s_1 > ... > s_N = 0.

    x   = start(s_0)                         s_0 z with z standard normal, unless a sampler knows better
    x   = step(x, s_i, s_{i+1})              one level down, for i = 0 .. N-1; at s_N = 0 it returns D(x; s)

The walks differ in `step`: they all rest on the probability-flow ODE of x = x0 + sigma eps
(Karras et al. 2022, arXiv:2206.00364, equation 3)

    dx/dsigma = -sigma grad log p(x; sigma) = (x - D(x; sigma)) / sigma

Levels are Python floats (float64); x keeps the dtype and the device of the noise.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowdiff.denoisers.wrappers import Denoise
from flowdiff.errors import FlowdiffError
from flowdiff.options import Steps, checked, snake_case
from flowdiff.samplers.noise import NoiseSource
from flowdiff.samplers.schedules import Schedule

OTHERS = "euler, heun or ancestral"

NEEDS = {
    "inverse": "that can be inverted (an invertible flow, conditioned by film or none, with leak > 0)",
    "density": "with a density (a flow)",
}


class Step(NamedTuple):
    """What a callback hears after each step."""

    number: int  # 1 .. total
    total: int
    sigma: float  # the level the step started from
    sigma_next: float  # the level it reached
    x: Tensor  # (n, *shape) at sigma_next


class Sampler:
    """Base of the samplers: subclasses give `step` and, where they don't begin with pure noise, `start`.

    A sampler holds its parameters and nothing else, so any number of threads may use one. One that remembers
    something from step to step, or measures something on its way, gives `walk` in place of `step`.

    Args:
        num_steps: how many levels the walk goes down, >= 1.
    """

    needs_inverse: bool = False
    needs_density: bool = False
    stays: bool = False  # all its levels but the last are equal
    sigma_start: float | None = None  # None: begin at the schedule's sigma_max

    @checked
    def __init__(self, num_steps: Steps) -> None:
        self.num_steps = num_steps

    def report(self, records: Mapping[str, Tensor]) -> dict[str, Any]:
        """What the `records` of one or more walks say, their rows joined: plain values for JSON."""
        return {}

    def lacks(self, denoiser: Any) -> str | None:
        """What it needs and the denoiser has not, `inverse` or `density`; None: nothing."""
        if self.needs_inverse and not getattr(denoiser, "has_inverse", hasattr(denoiser, "inverse")):
            return "inverse"
        if self.needs_density and not getattr(denoiser, "has_density", hasattr(denoiser, "log_prob")):
            return "density"
        return None

    def sigmas(self, schedule: Schedule) -> Tensor:
        """The levels of this sampler on a schedule: (num_steps + 1,) float64, decreasing, ending in 0."""
        return schedule(self.num_steps, sigma_max=self.sigma_start)

    def start(self, denoiser: Any, noise: NoiseSource, sigma: float, labels: Tensor | None) -> Tensor:
        """x at the first level, (n, *shape): sigma z, as good as x0 + sigma z far above the data's scale."""
        return sigma * noise()

    def step(self, denoise: Denoise, noise: NoiseSource, x: Tensor, sigma: float, to: float) -> Tensor:
        """x at the level `to` from x at the level `sigma`; D (for `Lms` nearly) where `to` is 0."""
        raise NotImplementedError

    def walk(self) -> "Walk":
        """A new walk, for one batch."""
        return Walk(self)

    def __call__(
        self,
        denoiser: Any,
        noise: NoiseSource,
        sigmas: Tensor,
        labels: Tensor | None = None,
        callback: Callable[[Step], None] | None = None,
        correct: Callable[[Tensor, float], Tensor] | None = None,
    ) -> Tensor:
        """Draw one batch.

        Args:
            denoiser: `D = denoiser(x, sigma, labels)`; with `inverse` if `needs_inverse`, with `log_prob`
                if `needs_density`.
            noise: fresh standard normals (n, *shape) at each call, e.g. `IndexedNoise`.
            sigmas: (num_steps + 1,) decreasing (or, if it `stays`, equal), the last one 0, e.g.
                `sampler.sigmas(schedule)`.
            labels: (n,) class labels, or None.
            callback: called with a `Step` after each step.
            correct: x and its level to another x at that level, before each step, e.g. `Conditioned`.

        Returns:
            (n, *shape) samples.
        """
        return self.walk()(denoiser, noise, sigmas, labels, callback, correct)

    def check(self, denoiser: Any, levels: list[float]) -> None:
        """Refuse levels that it can't walk down, and a denoiser that lacks what it needs."""
        if len(levels) != self.num_steps + 1 or levels[-1] != 0:
            raise ValueError(f"sigmas must be {self.num_steps + 1} levels ending in 0, not {levels}")
        if self.stays and len(set(levels[:-1])) > 1:
            raise ValueError(f"sigmas must be one level, repeated, and 0, not {levels}")
        if not self.stays and any(b >= a for a, b in zip(levels, levels[1:], strict=False)):
            raise ValueError(f"sigmas must decrease, not {levels}")
        lacking = self.lacks(denoiser)
        if lacking is not None:
            raise FlowdiffError(f"sampler={self.name}: needs a denoiser {NEEDS[lacking]}; choose {OTHERS} instead")

    @property
    def name(self) -> str:
        """The sampler's name in the configuration: `InversionDenoise` is `inversion_denoise`."""
        return snake_case(type(self).__name__)


class Walk:
    """One walk of a sampler, for one batch: what it remembers from step to step and what it measures.

    This one remembers nothing: it starts and steps as its sampler says.

    Attributes:
        records: what it has measured, by name, a row a sample; `Sampler.report` makes plain values of them.
    """

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self.records: dict[str, Tensor] = {}

    def start(self, denoiser: Any, noise: NoiseSource, sigma: float, labels: Tensor | None) -> Tensor:
        """As `Sampler.start`."""
        return self.sampler.start(denoiser, noise, sigma, labels)

    def step(self, denoise: Denoise, noise: NoiseSource, x: Tensor, sigma: float, to: float) -> Tensor:
        """As `Sampler.step`."""
        return self.sampler.step(denoise, noise, x, sigma, to)

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Any,
        noise: NoiseSource,
        sigmas: Tensor,
        labels: Tensor | None = None,
        callback: Callable[[Step], None] | None = None,
        correct: Callable[[Tensor, float], Tensor] | None = None,
    ) -> Tensor:
        """Go down the levels, once. Arguments and result as of `Sampler.__call__`."""
        levels = sigmas.tolist()
        self.sampler.check(denoiser, levels)
        denoise = Denoise(denoiser, labels)
        x = self.start(denoiser, noise, levels[0], labels)
        for i, (sigma, sigma_next) in enumerate(zip(levels, levels[1:], strict=False)):
            x = x if correct is None else correct(x, sigma)
            x = self.step(denoise, noise, x, sigma, sigma_next)
            if callback is not None:
                callback(Step(i + 1, self.sampler.num_steps, sigma, sigma_next, x))
        return x
