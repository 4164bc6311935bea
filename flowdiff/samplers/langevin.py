r"""Langevin steps at one noise level, unadjusted or Metropolis-adjusted (MALA: Roberts & Tweedie 1996).

    x' = x + tau s(x) + sqrt(2 tau) eps                           a step towards p, whose score s is
    log alpha = log p(x') - log p(x) + log q(x | x') - log q(x' | x)
              = log p(x') - log p(x) - delta . eps - |delta|^2 / 2,   delta = sqrt(tau / 2) (s(x) + s(x'))

Unadjusted steps draw from p only as tau goes to 0 (for a Gaussian of variance v the stationary variance is
v / (1 - tau / (2 v))). Accepted with probability min(1, alpha) they leave p as it is for every tau; s may then
be any function of x, as it only makes the proposal, but log p has to be exact up to a constant.

The step size that mixes fastest accepts 57 % of the proposals in high dimension, and is 1.36 v d^(-1/3) for d
independent Gaussians of variance v (Roberts & Rosenthal 1998). It is found by Robbins & Monro's rule,

    log tau <- log tau + gain k^(-decay) (accepted - 0.57)        after the k-th step of a chain
"""

from collections.abc import Callable
from typing import NamedTuple, overload

import torch
from torch import Tensor

from flowdiff.tensors import per_sample

Density = Callable[[Tensor], tuple[Tensor, Tensor]]
"""x (n, *shape) -> its score (n, *shape) and log p (n,), at one noise level and with the labels bound."""

TARGET = 0.57


class State(NamedTuple):
    """Where n chains are."""

    x: Tensor  # (n, *shape)
    score: Tensor  # (n, *shape) at x
    log_prob: Tensor  # (n,) at x


def langevin_step(
    density: Density, state: State, step: Tensor, noise: Tensor, uniform: Tensor | None = None
) -> tuple[State, Tensor]:
    """One step of n chains that don't interact.

    Args:
        density: score and log p of (n, *shape); one evaluation.
        state: where the chains are.
        step: (n,), tau of each chain, > 0.
        noise: (n, *shape) standard normals, eps.
        uniform: (n,) in (0, 1), for Metropolis' test; None: unadjusted.

    Returns:
        Where they are then, and (n,) bool, which chains moved. Metropolis' test rejects a proposal with a value,
        a score or a density that is not finite, and takes any other from a point whose density is not finite.
    """
    tau = per_sample(step, state.x)
    x = state.x + tau * state.score + (2 * tau).sqrt() * noise
    proposal = State(x, *density(x))
    if uniform is None:
        return proposal, torch.ones_like(step, dtype=torch.bool)
    delta = (tau / 2).sqrt() * (state.score + proposal.score)
    log_ratio = proposal.log_prob - state.log_prob - (delta * (noise + delta / 2)).flatten(1).sum(1)
    finite = (x + proposal.score).flatten(1).isfinite().all(1) & proposal.log_prob.isfinite()
    accepted = finite & ((uniform.log() <= log_ratio) | ~state.log_prob.isfinite())
    moved = per_sample(accepted, x)
    return State(
        torch.where(moved, x, state.x),
        torch.where(moved, proposal.score, state.score),
        torch.where(accepted, proposal.log_prob, state.log_prob),
    ), accepted


def uniforms(noise: Callable[[], Tensor]) -> Tensor:
    """(n,) uniform on (0, 1), each from its own row of one draw of standard normals."""
    return torch.special.ndtr(noise().flatten(1)[:, 0])


@overload
def optimal_step(dims: int) -> float: ...
@overload
def optimal_step(dims: Tensor) -> Tensor: ...
def optimal_step(dims: int | Tensor) -> float | Tensor:
    """The best tau for `dims` independent standard normals; for a tensor of numbers, of each."""
    return 1.36 * dims ** (-1 / 3)


def first_steps(x: Tensor, step_size: float | None) -> Tensor:
    """`step_size`, or the optimal step if None, for each row of x: (n,)."""
    return x.new_full((len(x),), optimal_step(x[0].numel()) if step_size is None else step_size)


class StepSize:
    """A step size for each chain, which follows the chain's own acceptance.

    Args:
        initial: (n,), > 0.
        gain: of Robbins & Monro's rule.
        decay: 0 keeps following a target that moves; in (1/2, 1] it settles. A chain is exact only with a step
            that no longer learns from it: `freeze`.
        target: the acceptance wanted.
    """

    def __init__(self, initial: Tensor, gain: float = 1.0, decay: float = 0.6, target: float = TARGET) -> None:
        self.gain, self.decay, self.target = gain, decay, target
        self.frozen = False
        self._updates = 0
        self._log = initial.log()

    @property
    def value(self) -> Tensor:
        """(n,), the steps to take now."""
        return self._log.exp()

    def update(self, accepted: Tensor) -> None:
        """Learn from a step: (n,) bool."""
        if self.frozen:
            return
        self._updates += 1
        self._log = self._log + self.gain * self._updates**-self.decay * (accepted.to(self._log) - self.target)

    def freeze(self) -> None:
        """Learn no more."""
        self.frozen = True


def adjusted_steps(
    density: Density,
    x: Tensor,
    rate: StepSize,
    variance: float,
    noise: Callable[[], Tensor],
    steps: int,
    free: Callable[[Tensor], Tensor] = lambda eps: eps,
) -> tuple[State, Tensor]:
    """Metropolis-adjusted steps of tau = rate * variance, from which the rate learns.

    Args:
        density: as for `langevin_step`.
        x: (n, *shape), where the chains are.
        rate: the step sizes over `variance`.
        variance: sigma^2.
        noise: standard normals (n, *shape) at each call, two for a step.
        steps: how many.
        free: what is kept of a step's noise, e.g. a projection of it.

    Returns:
        Where they are then, and (n,), the share of the steps that was accepted.
    """
    state, total = State(x, *density(x)), x.new_zeros(len(x))
    for _ in range(steps):
        eps = free(noise())
        state, accepted = langevin_step(density, state, rate.value * variance, eps, uniforms(noise))
        rate.update(accepted)
        total += accepted
    return state, total / steps
