r"""The equation that joins the densities of all noise levels.

Adding noise is diffusion, so the densities of x0 + σε at different σ obey the heat equation in the time σ²/2. For
log p (Lai et al. 2023, arXiv:2210.04296):

    ∂σ log p = σ (Δ log p + |∇ log p|²),

with the residual, in units of log σ, r = σ ∂σ log p − σ² (Δ log p + |∇ log p|²). The data's own densities have r = 0;
a flow gets the density of each σ from its own training data, and nothing makes them one diffusion.

The Laplacian is the trace of the Hessian H: exact by its rows, or vᵀHv for a random v with E vvᵀ = I (Hutchinson
1990), which is one derivative along v of the gradient.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from flowdiff.bijections.marginals import derivatives_by_sigma

LogProb = Callable[[Tensor, Tensor], Tensor]


class Slopes(NamedTuple):
    """Derivatives of log p at x (B, *shape), σ (B,).

    Attributes:
        log_prob: (B,) in nats.
        score: ∇ log p, (B, *shape).
        by_sigma: ∂σ log p, (B,).
        curvature: vᵀHv for the probe v, (B,).
    """

    log_prob: Tensor
    score: Tensor
    by_sigma: Tensor
    curvature: Tensor


def slopes(log_prob: LogProb, x: Tensor, sigma: Tensor, probe: Tensor) -> Slopes:
    """One gradient by x and σ, and its derivative along the probe.

    Args:
        log_prob: (x, σ) to (B,), samples not interacting. It runs without autocast.
        x: (B, *shape).
        sigma: (B,).
        probe: v, (B, *shape).
    """

    def summed(points: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        value = log_prob(points, levels)
        return value.sum(), value

    def gradient(points: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        (score, by_sigma), value = torch.func.grad(summed, argnums=(0, 1), has_aux=True)(points, sigma)
        return score, (by_sigma, value)

    with torch.autocast(x.device.type, enabled=False), derivatives_by_sigma():
        score, along, (by_sigma, value) = torch.func.jvp(gradient, (x,), (probe,), has_aux=True)  # type: ignore[misc]
    return Slopes(value, score, by_sigma, (probe * along).flatten(1).sum(1))


def residual(by_sigma: Tensor, score: Tensor, laplacian: Tensor, sigma: Tensor) -> Tensor:
    """r = σ ∂σ log p − σ² (Δ log p + |∇ log p|²), (B,), in nats per unit of log σ."""
    return sigma * by_sigma - sigma.square() * (laplacian + score.square().flatten(1).sum(1))


def rademacher(eps: Tensor) -> Tensor:
    """Signs ±1, shape of eps (standard normal), from the digits of eps that x = x0 + σε does not tell: the parity of
    ⌊4096 ε⌋. They need no random numbers beside ε, so that a loss is a function of its arguments.
    """
    return 1 - 2 * torch.remainder(torch.floor(4096 * eps), 2)
