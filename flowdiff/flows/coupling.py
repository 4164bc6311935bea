r"""Affine couplings (RealNVP: Dinh et al. 2017, arXiv:1605.08803) with residual MLPs, for vectors and small images.

Split the coordinates into a and b by a fixed pattern; a passes unchanged and decides what happens to b:

    y_a = x_a,     y_b = exp(s)·x_b + t,     (s, t) = κ·network(x_a, e),  s softly bounded,     log|det| = Σ s.

Consecutive steps transform complementary halves.
"""

import math

import torch
from torch import Tensor, nn

from flowdiff.activations import Context, GatedActivation
from flowdiff.errors import ConfigError, at_least, positive
from flowdiff.flows.base import ActivationFactory, Composite, Flow, soft_bound
from flowdiff.flows.networks import ResidualMLP


class AffineCoupling(Flow):
    """One affine coupling of vectors (B, d).

    Args:
        moved: bool (d,), the coordinates that are transformed.
        seen: bool (d,), the coordinates that decide (by default all others). Coordinates in neither pass unchanged.
        context_dim: length of the embedding.
        width, depth: of the residual MLP.
        max_log_scale: soft bound of |s|.
    """

    moved: Tensor
    seen: Tensor

    def __init__(
        self,
        moved: Tensor,
        context_dim: int,
        width: int,
        depth: int,
        max_log_scale: float = 2.0,
        seen: Tensor | None = None,
    ) -> None:
        super().__init__()
        seen = ~moved if seen is None else seen
        self.register_buffer("moved", moved.nonzero()[:, 0], persistent=False)
        self.register_buffer("seen", seen.nonzero()[:, 0], persistent=False)
        self.network = ResidualMLP(len(self.seen), 2 * len(self.moved), context_dim, width, depth)
        self.max_log_scale = positive("flow.max_log_scale", max_log_scale)

    def _terms(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        terms = context.kappa[:, None] * self.network(x[:, self.seen], context.embedding)
        s, t = terms.chunk(2, 1)
        return soft_bound(s, self.max_log_scale), t

    def forward(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        s, t = self._terms(x, context)
        return x.index_copy(1, self.moved, torch.addcmul(t, s.exp(), x[:, self.moved])), s.sum(1)

    def inverse(self, z: Tensor, context: Context) -> Tensor:
        s, t = self._terms(z, context)
        return z.index_copy(1, self.moved, (z[:, self.moved] - t) * (-s).exp())


class CouplingFlow(Composite):
    """n_flows × [AffineCoupling, GatedActivation] on flattened samples.

    Args:
        shape: shape of a sample; at least two coordinates.
        context_dim: length of the embedding of σ and class.
        activation: makes the activation of a step.
        n_flows: number of couplings.
        width, depth: of each residual MLP.
        max_log_scale: soft bound of a coupling's log-scales.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        context_dim: int,
        activation: ActivationFactory,
        n_flows: int = 12,
        width: int = 192,
        depth: int = 2,
        max_log_scale: float = 2.0,
    ) -> None:
        dim = math.prod(shape)
        if dim < 2:
            raise ConfigError("flow", "coupling", "needs data with at least 2 coordinates")
        at_least("flow.width", width, 1)
        steps: list[nn.Module] = []
        for i in range(at_least("flow.n_flows", n_flows, 1)):
            moved = split_mask(shape, i)
            steps += [
                AffineCoupling(moved, context_dim, width, depth, max_log_scale),
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
