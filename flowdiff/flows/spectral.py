r"""Couplings in the eigenbasis of the data's covariance, on nested leading subspaces.

y = Qᵀu are the coordinates ordered by variance (Q: `data.statistics.DataStatistics`). Most of what makes
an image legible is in a few leading ones, where a dense network is cheap. Step i couples two halves of the leading
m_i coordinates, m_i from `leading` · (1, 1/2, 1/4, …) in turn, so that the subspaces are nested; the last step
transforms the trailing coordinates, conditioned on all leading ones. The result is turned back, x = Qz.
"""

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from flowdiff.bijections.transforms import AffineTransform
from flowdiff.errors import ConfigError
from flowdiff.flows.base import ActivationFactory, Composite, Flow
from flowdiff.flows.context import MOST_DIM, Context, Moments
from flowdiff.flows.coupling import Coupling
from flowdiff.flows.gated import GatedActivation
from flowdiff.options import Layers, Length, LogScale, Range, Size, checked


class Rotated(Flow):
    """Steps in the basis Q: z = Q f(Qᵀx). Q is the identity until `fit`."""

    basis: Tensor

    def __init__(self, steps: Sequence[Flow], dim: int) -> None:
        super().__init__()
        self.inner = Composite(steps, (dim,))
        self.register_buffer("basis", torch.eye(dim))

    def fit(self, statistics: Moments) -> None:
        assert statistics.eigenvectors is not None, "SpectralFlow refuses data that have none"
        self.basis.copy_(statistics.eigenvectors)

    def forward(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            y = x @ self.basis
        z, logdet = self.inner(y, context)
        with torch.autocast(x.device.type, enabled=False):
            return z @ self.basis.T, logdet

    def inverse(self, z: Tensor, context: Context) -> Tensor:
        return self.inner.inverse(z @ self.basis, context) @ self.basis.T


class SpectralFlow(Composite):
    """n_flows × [affine Coupling in the eigenbasis, GatedActivation].

    Args:
        shape: shape of a sample; at least two coordinates.
        context_dim: length of the embedding of σ and class.
        activation: makes the activation of a step.
        n_flows: number of steps; the last one transforms the trailing coordinates, if there are any.
        leading: number of leading coordinates (all of them if the data have fewer).
        nested: subspaces in turn, as shares of `leading`.
        width, depth: of each residual MLP.
        max_log_scale: soft bound of a coupling's log-scales.
    """

    @checked
    def __init__(
        self,
        shape: tuple[int, ...],
        context_dim: int,
        activation: ActivationFactory,
        n_flows: Layers = 10,
        leading: Annotated[int, Range(2, 65536)] = 144,
        nested: Annotated[Sequence[Annotated[float, Range(0, 1, above=True)]], Length(1, 1000)] = (1.0, 1.0, 0.5, 0.5),
        width: Size = 384,
        depth: Layers = 2,
        max_log_scale: LogScale = 2.0,
    ) -> None:
        dim = math.prod(shape)
        if dim < 2:
            raise ConfigError("flow", "spectral", "needs data with at least 2 coordinates")
        if dim > MOST_DIM:
            allowed = (
                f"needs the eigenvectors of the covariance, which data of {dim} coordinates (more than {MOST_DIM}) are "
                f"not given: choose flow=conv, glow or transformer"
            )
            raise ConfigError("flow", "spectral", allowed)
        leading = min(leading, dim)
        trailing = leading < dim
        steps: list[Flow] = []
        for i in range(n_flows):
            if trailing and i == n_flows - 1:
                seen = torch.arange(dim) < leading
                moved = ~seen
            else:
                m = max(2, round(leading * nested[i % len(nested)]))
                order = torch.randperm(m, generator=torch.Generator().manual_seed(i // 2))
                half = order[: m // 2] if i % 2 == 0 else order[m // 2 :]
                inside = torch.arange(dim) < m
                moved = torch.zeros(dim, dtype=torch.bool)
                moved[half] = True
                seen = inside & ~moved
            coupling = Coupling(moved, AffineTransform(max_log_scale), context_dim, width, depth, seen)
            steps += [coupling, GatedActivation(activation, (dim,))]
        super().__init__([Rotated(steps, dim)], (dim,))
