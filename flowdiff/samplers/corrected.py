r"""Predictor-corrector sampling (Song et al. 2021, arXiv:2011.13456): Langevin steps at every noise level.

    x <- an ancestral step from s to s'                              the predictor
    x <- n_corrector Langevin steps for p(x; s'), with tau = r s'^2    the corrector; none at s' = 0

Ula's steps are unadjusted: they only need D, for s(x) = (D - x) / sigma^2, and are biased by the size of r.
Mala's pass the Metropolis test of the exact density (`langevin`), under guidance that of
log p_c + (w - 1)(log p_c - log p_null): whatever r is, they leave p(x; s') as it is and only take away the
predictor's errors. Each sample's r follows its own acceptance to 57 %, so that samples don't depend on their batch;
what r has learnt from the path of a sample is the one thing that is not exact (`mcmc` stops learning).
"""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from flowdiff.denoisers.wrappers import Denoise
from flowdiff.options import NonNegative, Positive, Range, Steps, checked
from flowdiff.samplers.ancestral import Ancestral
from flowdiff.samplers.base import Walk
from flowdiff.samplers.langevin import State, StepSize, adjusted_steps, first_steps, langevin_step
from flowdiff.samplers.noise import NoiseSource

GROUPS = 8
"""So many groups of neighbouring levels does a report tell apart."""


class Ula(Ancestral):
    """Ancestral steps, each followed by unadjusted Langevin steps. 2 + (N - 1)(1 + n_corrector) evaluations.

    The last evaluation of a corrector is the predictor's, too.

    Args:
        num_steps: N.
        eta: share of fresh noise of the predictor, >= 0.
        n_corrector: Langevin steps at each level, >= 1.
        step_size: r, > 0; None: the best for independent Gaussians of variance sigma^2.
    """

    @checked
    def __init__(
        self,
        num_steps: Steps,
        eta: NonNegative = 1.0,
        n_corrector: Annotated[int, Range(1, 1000)] = 1,
        step_size: Positive | None = 0.1,
    ) -> None:
        super().__init__(num_steps, eta)
        self.n_corrector = n_corrector
        self.step_size = step_size

    def walk(self) -> Walk:
        return UlaWalk(self)


class UlaWalk(Walk):
    """Remembers where the last corrector ended, and the score there."""

    sampler: Ula

    def __init__(self, sampler: Ula) -> None:
        super().__init__(sampler)
        self.state: State | None = None

    def step(self, denoise: Denoise, noise: NoiseSource, x: Tensor, sigma: float, to: float) -> Tensor:
        if to == 0:
            return denoise(x, sigma)
        state = self.state
        # its score is that of x unless x was changed since (`correct` of the call)
        denoised = denoise(x, sigma) if state is None or state.x is not x else x + sigma**2 * state.score
        self.state = self.correct(denoise, noise, self.sampler.move(x, denoised, noise, sigma, to), to)
        return self.state.x

    def correct(self, denoise: Denoise, noise: NoiseSource, x: Tensor, sigma: float) -> State:
        """`n_corrector` Langevin steps at sigma."""

        def density(x: Tensor) -> tuple[Tensor, Tensor]:
            return (denoise(x, sigma) - x) / sigma**2, x.new_zeros(len(x))

        state = State(x, *density(x))
        step = first_steps(x, self.sampler.step_size) * sigma**2
        for _ in range(self.sampler.n_corrector):
            state, _ = langevin_step(density, state, step, noise())
        return state


class Mala(Ula):
    """Ancestral steps, each followed by Metropolis-adjusted Langevin steps. Evaluations as for `Ula`.

    Needs a density. Its report: the acceptance, in all and by sigma, and the r that the samples end with.

    Args:
        num_steps: N.
        eta: share of fresh noise of the predictor, >= 0.
        n_corrector: Langevin steps at each level, >= 1.
        step_size: r at the start, > 0; None: as for `Ula`.
    """

    needs_density = True

    @checked
    def __init__(
        self,
        num_steps: Steps,
        eta: NonNegative = 1.0,
        n_corrector: Annotated[int, Range(1, 1000)] = 1,
        step_size: Positive | None = None,
    ) -> None:
        super().__init__(num_steps, eta, n_corrector, step_size)

    def walk(self) -> Walk:
        return MalaWalk(self)

    def report(self, records: Mapping[str, Tensor]) -> dict[str, Any]:
        """`acceptance`, `acceptance_by_sigma` (a level in each of some groups to their mean), `step_size` (the
        median r at the end)."""
        if "acceptance" not in records:
            return {}
        levels, rates = records["sigma"][0], records["acceptance"].mean(0)
        groups = zip(levels.tensor_split(GROUPS), rates.tensor_split(GROUPS), strict=True)
        by_sigma = {f"{s.log().mean().exp():.3g}": round(float(a.mean()), 3) for s, a in groups if len(s)}
        return {
            "acceptance": round(float(rates.mean()), 3),
            "acceptance_by_sigma": by_sigma,
            "step_size": float(f"{records['step_size'].median():.3g}"),
        }


class MalaWalk(UlaWalk):
    """Remembers each sample's r; records it, and the acceptance at each level."""

    def __init__(self, sampler: Ula) -> None:
        super().__init__(sampler)
        self.rate: StepSize | None = None
        self.acceptance: list[Tensor] = []  # (n,) at each level
        self.levels: list[Tensor] = []

    def correct(self, denoise: Denoise, noise: NoiseSource, x: Tensor, sigma: float) -> State:
        def density(x: Tensor) -> tuple[Tensor, Tensor]:
            return denoise.score_and_log_prob(x, sigma)

        if self.rate is None:
            self.rate = StepSize(first_steps(x, self.sampler.step_size), decay=0.0)
        state, acceptance = adjusted_steps(density, x, self.rate, sigma**2, noise, self.sampler.n_corrector)
        self.acceptance.append(acceptance)
        self.levels.append(torch.full_like(acceptance, sigma))
        columns = {"acceptance": self.acceptance, "sigma": self.levels}
        self.records = {key: torch.stack(column, 1) for key, column in columns.items()}
        self.records["step_size"] = self.rate.value
        return state
