r"""Actnorm: scale and shift per channel with first values from data (Kingma & Dhariwal 2018, arXiv:1807.03039, §3.1).

    y = exp(κ·s)·x + κ·b,     log|det| = κ·places·Σ s,     s = soft_bound(ŝ),     ŝ = b = 0 until data set them.

Rows of a batch have their own κ(σ), and one with a small κ can hardly be moved, so rows i count by their κ. Over rows
and the places p of a channel, with the weighted mean m = Σ κ_i x_ip / Σ κ_i,

    Σ κ_i exp(2κ_i s)(x_ip − m)² = Σ κ_i,     s by bisection in ±LIMIT: a constant channel gets LIMIT,
    Σ κ_i y_ip = 0,     i.e. b = −Σ κ_i exp(κ_i s) x_ip / Σ κ_i², the shift of least squares.

With one κ for all rows y has mean 0 and variance 1 over the batch. Data set a layer only where the context says that
they are the first batch, and only once: `initialised` is saved with the weights. At any other time the layer is one
function of its input.
"""

import torch
from torch import Tensor, nn

from flowdiff.flows.base import Step
from flowdiff.flows.context import Context
from flowdiff.nn.bounds import soft_bound
from flowdiff.tensors import per_sample

BOUND, LIMIT = 4.0, 3.0  # of |s|: what training can reach, and what data may set


class ActNorm(Step):
    """y = exp(κ·s)·x + κ·b on (B, C, …), one s and b per channel; the identity until data initialise it.

    Args:
        channels: C.
    """

    initialised: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))
        self.register_buffer("initialised", torch.tensor(False))

    @property
    def wants_first_batch(self) -> bool:
        return not self.initialised

    def _terms(self, context: Context, like: Tensor) -> tuple[Tensor, Tensor]:
        """κ·s and κ·b, (B, C, 1, …)."""
        kappa, shape = per_sample(context.kappa, like), (1, -1, *[1] * (like.dim() - 2))
        return kappa * soft_bound(self.log_scale, BOUND).view(shape), kappa * self.shift.view(shape)

    def terms(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        if context.first_batch and self.wants_first_batch:
            self._initialise(x.detach(), context.kappa.detach())
        log_scale, shift = self._terms(context, x)
        return torch.addcmul(shift, log_scale.exp(), x), x[0, 0].numel() * log_scale

    def inverse(self, z: Tensor, context: Context) -> Tensor:
        log_scale, shift = self._terms(context, z)
        return (z - shift) * (-log_scale).exp()

    @torch.no_grad()
    def _initialise(self, x: Tensor, kappa: Tensor) -> None:
        """Set s and b from x (B, C, …) and κ (B,)."""
        places, kappa = x.reshape(*x.shape[:2], -1).double(), kappa.double()[:, None]
        rows = places.mean(2)  # (B, C)
        squares = (places - (kappa * rows).sum(0)[:, None] / kappa.sum()).square().mean(2)
        low, high = rows.new_full((x.shape[1],), -LIMIT), rows.new_full((x.shape[1],), LIMIT)
        for _ in range(60):
            s = (low + high) / 2
            small = (kappa * (2 * kappa * s).exp() * squares).sum(0) < kappa.sum()
            low, high = torch.where(small, s, low), torch.where(small, high, s)
        self.log_scale.copy_(BOUND * (s / BOUND).atanh())
        self.shift.copy_(-(kappa * (kappa * s).exp() * rows).sum(0) / kappa.square().sum())
        self.initialised.fill_(True)
