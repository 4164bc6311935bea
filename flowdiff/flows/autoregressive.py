r"""Masked autoregressive flows (Papamakarios et al. 2017, arXiv:1705.07057), for vectors and small images.

In a fixed order of the coordinates, each is transformed by an elementwise map that the ones before it decide:

    z_i = T(x_i; θ_i),     θ_i = κ·network_i(x_1, …, x_{i−1}, e),     log|det| = Σ log T'(x_i; θ_i),

with T affine or a spline (`bijections.transforms`). All θ_i come from one pass of a masked network (MADE:
Germain et al. 2015, arXiv:1502.03509): every hidden unit has a degree m and sees the inputs 1…m and the hidden units of
degrees up to m, θ_i those of degrees below i. Units of degree 0 see e alone. The order is reversed from step to step.
The inverse finds one coordinate after the other, in d passes of the network.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowdiff.bijections.transforms import AffineTransform, Transform, TransformFactory, build
from flowdiff.flows.base import ActivationFactory, Composite, Flow, Step
from flowdiff.flows.context import Context
from flowdiff.flows.gated import GatedActivation
from flowdiff.nn.networks import ResidualMLP
from flowdiff.options import Layers, LogScale, Size, checked


class MaskedLinear(nn.Linear):
    """A linear layer that keeps only the weights where the mask (outputs, inputs) is true."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask.to(self.weight.dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class MADE(ResidualMLP):
    """(B, d) and an embedding (B, E) to (B, size, d), where [:, :, i] depends on the coordinates before i only.

    Args:
        order: (d,), the coordinates in their order.
        size: numbers given for each coordinate.
        context_dim: E.
        width: of the hidden layers.
        depth: number of residual blocks.
    """

    last: MaskedLinear

    def __init__(self, order: Tensor, size: int, context_dim: int, width: int, depth: int) -> None:
        dim = len(order)
        super().__init__(dim, size * dim, context_dim, width, depth)
        self.size = size
        place = order.argsort() + 1  # of each coordinate, from 1
        degree = torch.arange(width) * dim // width  # of each hidden unit, from 0 to d − 1
        among_hidden = degree[:, None] >= degree
        self.first = MaskedLinear(degree[:, None] >= place)
        self.inner = nn.ModuleList(MaskedLinear(among_hidden) for _ in range(depth))
        self.outer = nn.ModuleList(MaskedLinear(among_hidden) for _ in range(depth))
        self.last = MaskedLinear((place[:, None] > degree).repeat(size, 1))
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, embedding: Tensor, dropout: float = 0.0) -> Tensor:
        return super().forward(x, embedding, dropout).view(len(x), self.size, -1)

    def at(self, i: int, x: Tensor, embedding: Tensor) -> Tensor:
        """[:, :, i] of the output alone, (B, size)."""
        rows = slice(i, None, x.shape[1])
        weight = self.last.weight[rows] * self.last.mask[rows]
        return F.linear(self.hidden(x, embedding), weight, self.last.bias[rows]).to(x.dtype)


class Autoregressive(Step):
    """One autoregressive step on vectors (B, d).

    Args:
        order: (d,), the coordinates in their order.
        transform: what is done to each.
        context_dim: length of the embedding.
        width, depth: of the masked residual MLP.
    """

    order: Tensor

    def __init__(self, order: Tensor, transform: Transform, context_dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.register_buffer("order", order, persistent=False)
        self.transform = transform
        self.network = MADE(order, transform.size, context_dim, width, depth)

    def terms(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        parameters = context.kappa[:, None, None] * self.network(x, context.embedding, context.dropout)
        z, log_slope = self.transform.forward(x, parameters)
        return z, log_slope

    def inverse(self, z: Tensor, context: Context) -> Tensor:
        """The x with forward(x) = z, exactly, in d passes of the network."""
        x = torch.zeros_like(z)
        for i in self.order.tolist():
            parameters = context.kappa[:, None] * self.network.at(i, x, context.embedding)
            column = self.transform.inverse(z[:, i : i + 1], parameters[:, :, None])
            x = x.index_copy(1, torch.tensor([i], device=x.device), column)
        return x


class AutoregressiveFlow(Composite):
    """n_flows × [Autoregressive, GatedActivation] on flattened samples. Sampling by its inverse takes n_flows·d passes.

    Args:
        shape: shape of a sample.
        context_dim: length of the embedding of σ and class.
        activation: makes the activation of a step.
        n_flows: number of steps.
        width, depth: of each masked residual MLP.
        max_log_scale: soft bound of a step's log-scales.
        transform: makes what a step does to each coordinate, called with max_log_scale=.
    """

    @checked
    def __init__(
        self,
        shape: tuple[int, ...],
        context_dim: int,
        activation: ActivationFactory,
        n_flows: Layers = 6,
        width: Size = 256,
        depth: Layers = 2,
        max_log_scale: LogScale = 2.0,
        transform: TransformFactory = AffineTransform,
    ) -> None:
        dim = math.prod(shape)
        steps: list[Flow] = []
        for i in range(n_flows):
            order = torch.arange(dim) if i % 2 == 0 else torch.arange(dim).flip(0)
            steps += [
                Autoregressive(order, build(transform, max_log_scale), context_dim, width, depth),
                GatedActivation(activation, (dim,)),
            ]
        super().__init__(steps, (dim,))
