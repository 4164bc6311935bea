r"""Markov chains at one noise level: Metropolis-adjusted Langevin steps for p(x; sigma), then D(x; sigma).

A chain starts at a sample of p (the flow's inverse) or far from one (sigma z); its step size follows its own
acceptance in the warm-up and stays from then on, so that the rest of the chain is exact (`langevin`). Rows of
equal class are chains of one density, and `chains` tells how far they agree: started at samples of p, they
disagree as far as they can't get from mode to mode.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from flowdiff.denoisers.wrappers import Denoise
from flowdiff.options import Positive, Range, Sigma, Steps, checked
from flowdiff.samplers.base import Sampler, Walk
from flowdiff.samplers.chains import ess, rhat
from flowdiff.samplers.inversion import sample_by_inverse
from flowdiff.samplers.langevin import State, StepSize, first_steps, langevin_step, uniforms
from flowdiff.samplers.noise import NoiseSource
from flowdiff.samplers.schedules import Schedule

COORDINATES = 32
"""So many coordinates of a sample, evenly spaced, are kept of each draw, with log p."""


class Mcmc(Sampler):
    """Chains of `num_steps` steps at `sigma_start`, then D. 2 + num_steps evaluations, 1 inversion.

    Needs a density, and an inverse to start from. Its report: the acceptance, the r = tau / sigma^2 and the number
    of draws after the warm-up, R-hat and the effective number of draws of a class, the worst and the median over
    coordinates, log p and classes.

    Args:
        sigma_start: the noise level.
        num_steps: steps of a chain, >= 1.
        start: where chains start, `inverse` or `noise`.
        warmup: share of the steps in which the step size adapts, in [0, 1).
        step_size: r at the start, > 0; None: the best for independent Gaussians of variance sigma^2.
    """

    needs_density = True
    stays = True

    @checked
    def __init__(
        self,
        sigma_start: Sigma,
        num_steps: Steps,
        start: Literal["inverse", "noise"] = "inverse",
        warmup: Annotated[float, Range(0, 1, below=True)] = 0.5,
        step_size: Positive | None = None,
    ) -> None:
        super().__init__(num_steps)
        self.sigma_start: float = float(sigma_start)
        self.needs_inverse = start == "inverse"
        self.warmup = math.floor(warmup * num_steps)
        self.step_size = step_size

    def sigmas(self, schedule: Schedule) -> Tensor:
        """sigma_start once a step, then 0; the schedule only says which sigma is too low."""
        level, end = schedule(1, sigma_max=self.sigma_start)
        return torch.cat([level.expand(self.num_steps), end[None]])

    def start(self, denoiser: Any, noise: NoiseSource, sigma: float, labels: Tensor | None) -> Tensor:
        begin = sample_by_inverse if self.needs_inverse else super().start
        return begin(denoiser, noise, sigma, labels)

    def walk(self) -> Walk:
        return McmcWalk(self)

    def report(self, records: Mapping[str, Tensor]) -> dict[str, Any]:
        if not records:
            return {}
        draws, classes = records["draws"], records["class"]
        found = {
            "acceptance": float(records["accepted"].double().mean()),
            "step_size": float(records["rate"].median()),
            "chains": len(draws),
            "draws": draws.shape[1],
        }
        groups = [draws[classes == c] for c in classes.unique()] if draws.shape[1] >= 8 else []
        apart = torch.cat([rhat(g) for g in groups]) if groups else torch.empty(0)
        size = torch.cat([ess(g) for g in groups]) if groups else torch.empty(0)
        apart, size = apart[apart.isfinite()], size[size.isfinite()]
        if len(apart) and len(size):
            found |= {
                "rhat_max": float(apart.max()),
                "rhat_median": float(apart.median()),
                "ess_min": float(size.min()),
                "ess_median": float(size.median()),
            }
        return {key: value if isinstance(value, int) else float(f"{value:.4g}") for key, value in found.items()}


class McmcWalk(Walk):
    """Remembers where the chains are, their step sizes and the draws after the warm-up, which it records at the end."""

    sampler: Mcmc
    size: StepSize

    def __init__(self, sampler: Mcmc) -> None:
        super().__init__(sampler)
        self.state: State | None = None
        self.labels: Tensor | None = None
        self.draws: list[Tensor] = []
        self.accepted: list[Tensor] = []
        self.done = 0

    def start(self, denoiser: Any, noise: NoiseSource, sigma: float, labels: Tensor | None) -> Tensor:
        x = super().start(denoiser, noise, sigma, labels)
        self.labels, self.size = labels, StepSize(first_steps(x, self.sampler.step_size) * sigma**2)
        return x

    def step(self, denoise: Denoise, noise: NoiseSource, x: Tensor, sigma: float, to: float) -> Tensor:
        def density(x: Tensor) -> tuple[Tensor, Tensor]:
            return denoise.score_and_log_prob(x, sigma)

        if self.state is None:
            self.state = State(x, *density(x))
        if self.done == self.sampler.warmup:
            self.size.freeze()
        self.state, accepted = langevin_step(density, self.state, self.size.value, noise(), uniforms(noise))
        self.size.update(accepted)
        self.done += 1
        if self.done > self.sampler.warmup:
            self.keep(self.state, accepted)
        if to > 0:
            return self.state.x
        self.record(sigma)
        return denoise(self.state.x, sigma)

    def keep(self, state: State, accepted: Tensor) -> None:
        """Some coordinates and log p of each chain's draw."""
        flat = state.x.flatten(1)
        chosen = torch.linspace(0, flat.shape[1] - 1, min(COORDINATES, flat.shape[1])).round().long()
        self.draws.append(torch.cat([flat[:, chosen.to(flat.device)], state.log_prob[:, None]], 1).cpu())
        self.accepted.append(accepted.cpu())

    def record(self, sigma: float) -> None:
        """Put what was kept into `records`."""
        n = len(self.draws[0])
        self.records = {
            "draws": torch.stack(self.draws, 1),
            "accepted": torch.stack(self.accepted, 1),
            "rate": (self.size.value / sigma**2).cpu(),
            "class": torch.full((n,), -1) if self.labels is None else self.labels.cpu(),
        }
