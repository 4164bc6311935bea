r"""The gate through which a flow uses an activation a (`bijections.activations`), elementwise.

    y = x + g·κ(σ)·(a(x) − x),               dy/dx = 1 + g·κ(σ)·(a'(x) − 1),

with κ(σ) ∈ (0, 1] and a learned g ∈ [0, 1] for each coordinate, which starts at 0: the identity at the start, and
always increasing, as a convex mix of increasing bijections is.
"""

import torch
from torch import Tensor, nn

from flowdiff.flows.base import ActivationFactory, Step
from flowdiff.flows.context import Context
from flowdiff.tensors import per_sample


class GatedActivation(Step):
    """y = x + g·κ(σ)·(a(x) − x).

    The gate is the learned number clamped to [0, 1]; its gradient passes the clamp unchanged (a straight-through
    estimate), since every smooth map onto [0, 1] has slope 0 where it is 0, and could never leave it.

    Args:
        activation: makes the activation.
        shape: shape of the gate, broadcast against a sample.
    """

    def __init__(self, activation: ActivationFactory, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.activation = activation()
        self.activation.build(shape)
        self.gate = nn.Parameter(torch.full(shape, self.activation.initial_gate))

    @property
    def normalized(self) -> bool:
        return self.activation.is_bijection

    def _strength(self, context: Context, x: Tensor) -> Tensor:
        """g·κ(σ)·(1 − leak), so that y = x + strength·(r(x) − x)."""
        gate = self.gate + (self.gate.clamp(0, 1) - self.gate).detach()
        return (1 - self.activation.leak) * gate * per_sample(context.kappa, x)

    def terms(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        y, slope = self.activation.mix(x, self._strength(context, x))
        if not self.normalized:
            slope = slope.clamp(min=torch.finfo(slope.dtype).tiny)
        return y, slope.log()

    def inverse(self, z: Tensor, context: Context) -> Tensor:
        return self.activation.unmix(z, self._strength(context, z))
