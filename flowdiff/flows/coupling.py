r"""Couplings (RealNVP: Dinh et al. 2017, arXiv:1605.08803) with residual MLPs, for vectors and small images.

Split the coordinates into a and b by a fixed pattern; a passes unchanged and decides what happens to b:

    y_a = x_a,     y_b = T(x_b; θ),     θ = κ·network(x_a, e),     log|det| = Σ log T'(x_b; θ),

with T affine or a spline (`bijections.transforms`). Consecutive steps transform complementary halves.
"""

import math

import torch
from torch import Tensor

from flowdiff.bijections.transforms import AffineTransform, Transform, TransformFactory, build
from flowdiff.errors import ConfigError
from flowdiff.flows.base import ActivationFactory, Composite, Flow, Step
from flowdiff.flows.context import Context
from flowdiff.flows.gated import GatedActivation
from flowdiff.nn.networks import ResidualMLP
from flowdiff.options import Layers, LogScale, Size, checked


class Coupling(Step):
    """One coupling of vectors (B, d).

    Args:
        moved: bool (d,), the coordinates that are transformed.
        transform: what is done to them.
        context_dim: length of the embedding.
        width, depth: of the residual MLP.
        seen: bool (d,), the coordinates that decide (by default all others). Coordinates in neither pass unchanged.
    """

    moved: Tensor
    seen: Tensor

    def __init__(
        self,
        moved: Tensor,
        transform: Transform,
        context_dim: int,
        width: int,
        depth: int,
        seen: Tensor | None = None,
    ) -> None:
        super().__init__()
        seen = ~moved if seen is None else seen
        self.register_buffer("moved", moved.nonzero()[:, 0], persistent=False)
        self.register_buffer("seen", seen.nonzero()[:, 0], persistent=False)
        self.transform = transform
        self.network = ResidualMLP(len(self.seen), transform.size * len(self.moved), context_dim, width, depth)

    def _theta(self, x: Tensor, context: Context) -> Tensor:
        theta = context.kappa[:, None] * self.network(x.index_select(1, self.seen), context.embedding, context.dropout)
        return theta.view(len(x), self.transform.size, len(self.moved))

    def terms(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        y, log_slope = self.transform.forward(x.index_select(1, self.moved), self._theta(x, context))
        return x.index_copy(1, self.moved, y), log_slope

    def inverse(self, z: Tensor, context: Context) -> Tensor:
        x = self.transform.inverse(z.index_select(1, self.moved), self._theta(z, context))
        return z.index_copy(1, self.moved, x)


class CouplingFlow(Composite):
    """n_flows × [Coupling, GatedActivation] on flattened samples.

    Args:
        shape: shape of a sample; at least two coordinates.
        context_dim: length of the embedding of σ and class.
        activation: makes the activation of a step.
        n_flows: number of couplings.
        width, depth: of each residual MLP.
        max_log_scale: soft bound of a coupling's log-scales.
        transform: makes what a coupling does to its coordinates, called with max_log_scale=.
    """

    @checked
    def __init__(
        self,
        shape: tuple[int, ...],
        context_dim: int,
        activation: ActivationFactory,
        n_flows: Layers = 12,
        width: Size = 192,
        depth: Layers = 2,
        max_log_scale: LogScale = 2.0,
        transform: TransformFactory = AffineTransform,
    ) -> None:
        dim = math.prod(shape)
        if dim < 2:
            raise ConfigError("flow", "coupling", "needs data with at least 2 coordinates")
        steps: list[Flow] = []
        for i in range(n_flows):
            moved = split_mask(shape, i)
            steps += [
                Coupling(moved, build(transform, max_log_scale), context_dim, width, depth),
                GatedActivation(activation, (dim,)),
            ]
        super().__init__(steps, (dim,))


def split_mask(shape: tuple[int, ...], step: int) -> Tensor:
    """Bool (d,) of half the coordinates: a checkerboard in every third pair of steps, else a random half.

    Steps 2k and 2k + 1 have complementary masks.
    """
    dim = math.prod(shape)
    if len(shape) == 3 and (step // 2) % 3 == 0:
        grid = torch.stack(torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij"))
        mask = (grid.sum(0).flatten() % 2).bool()
    else:
        order = torch.randperm(dim, generator=torch.Generator().manual_seed(step // 2))
        mask = torch.zeros(dim, dtype=torch.bool)
        mask[order[: dim // 2]] = True
    return mask if step % 2 == 0 else ~mask
