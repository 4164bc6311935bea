r"""Invertible residual flows (Behrmann et al. 2019, arXiv:1811.00995; Chen et al. 2019, arXiv:1906.02735).

    y = x + λ·g(x; e),       λ = c·κ(σ),  c < 1,  |g(x; e) − g(x'; e)| ≤ |x − x'|,
    log|det dy/dx| = log det(I + λ·∂g/∂x),
    x = lim x_n,             x_{n+1} = y − λ·g(x_n; e),   |x_n − x| ≤ λⁿ·|x_0 − x|.

g (`nn.lipschitz`) sees all coordinates at once, in place of the half that a coupling sees. What it pays is
the bound: the slopes of one step are in [1 − c, 1 + c], everywhere, and for any weights. A step also scales and shifts
every coordinate by σ and class, where real residual flows have an ActNorm, so that many narrow steps make one flow.

The log-determinant is exact where min(d, width) ≤ exact_dim: of d × d matrices, or, by Sylvester's identity, of
width × width ones. Above, it is an unbiased estimate (`flows.logdet`).
"""

import logging
import math
from typing import Annotated

import torch
from torch import Tensor

from flowdiff.errors import FlowdiffError
from flowdiff.flows.base import ActivationFactory, Composite, Flow
from flowdiff.flows.context import Context
from flowdiff.flows.gated import GatedActivation
from flowdiff.flows.linear import AffineFiLM
from flowdiff.flows.logdet import Probes, estimate_log_det, exact_log_det
from flowdiff.nn.lipschitz import LipschitzMLP
from flowdiff.options import Count, Layers, LogScale, Range, Size, checked

log = logging.getLogger(__name__)


class ResidualBlock(Flow):
    """x + c·κ·g(x; e) of vectors (B, d).

    Args:
        dim: d.
        context_dim: length of the embedding e.
        width, depth: of the hidden layers of g, and their number.
        lipschitz: c, in (0, 1).
        exact_dim: up to this min(d, width) the log-determinant is exact.
        terms: of the series that are always there when the estimate is a random one.
        inverse_iterations: at most so many, else the inverse raises.
    """

    def __init__(
        self,
        dim: int,
        context_dim: int,
        width: int,
        depth: int = 1,
        lipschitz: float = 0.9,
        exact_dim: int = 64,
        terms: int = 4,
        inverse_iterations: int = 500,
    ) -> None:
        super().__init__()
        self.lipschitz = lipschitz
        self.network = LipschitzMLP(dim, context_dim, width, depth)
        self.inverse_iterations = inverse_iterations
        size = min(dim, width)
        self.probes = None if size <= exact_dim else Probes(size, terms, lipschitz)

    @property
    def exact(self) -> bool:
        return self.probes is None

    @property
    def uncompilable(self) -> str | None:
        if self.exact:
            return None
        return (
            "this flow estimates its log-determinant with a random number of terms, each a graph of its own; a "
            "flow.exact_dim of at least flow.width makes it exact"
        )

    def forward(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            layers = self.network.layers(context.embedding.to(x.dtype), context.dropout)
            g, jacobian = self.network(x, layers)
            factor = self.lipschitz * context.kappa[:, None]
            y = x + factor * g
            factor = factor[:, None]
            if self.probes is None:
                eye = torch.eye(jacobian.size, dtype=x.dtype, device=x.device)
                return y, exact_log_det(eye + factor * jacobian(eye))
            probes, weights = self.probes(len(x), context.probes)
            return y, estimate_log_det(lambda rows: factor * jacobian(rows), probes, weights)

    def inverse(self, z: Tensor, context: Context) -> Tensor:
        """The x with forward(x) = z, by fixed-point iteration down to the rounding of z's type.

        Raises:
            FlowdiffError: not converged after `inverse_iterations`; it names the residual.
        """
        layers = self.network.layers(context.embedding)
        factor = self.lipschitz * context.kappa[:, None]
        x, precision = z, 8 * torch.finfo(z.dtype).eps
        for _ in range(self.inverse_iterations):
            following = z - factor * self.network(x, layers)[0]
            step = (following - x).norm(dim=1)  # also the residual |forward(x) − z|
            x = following
            if bool((step <= precision * (math.sqrt(z.shape[1]) + x.norm(dim=1))).all()):
                return x
        raise FlowdiffError(
            f"flow=residual: the inverse has not converged, residual {step.max().item():.2g} after "
            f"{self.inverse_iterations} iterations: raise flow.inverse_iterations or lower flow.lipschitz"
        )


class ResidualFlow(Composite):
    """n_flows × [AffineFiLM, ResidualBlock, GatedActivation] on flattened samples.

    Args:
        shape: shape of a sample.
        context_dim: length of the embedding of σ and class.
        activation: makes the activation of a step.
        n_flows: number of steps.
        width, depth, lipschitz, exact_dim, terms, inverse_iterations: of every `ResidualBlock`.
        max_log_scale: soft bound of a step's log-scales.

    Attributes:
        inverse_residual: max |forward(x) − z| of the last call of `inverse`, also logged; NaN before the first.
    """

    @checked
    def __init__(
        self,
        shape: tuple[int, ...],
        context_dim: int,
        activation: ActivationFactory,
        n_flows: Layers = 8,
        width: Size = 32,
        depth: Layers = 1,
        lipschitz: Annotated[float, Range(0, 1, above=True, below=True)] = 0.9,
        max_log_scale: LogScale = 3.0,
        exact_dim: Annotated[int, Range(0, 65536)] = 64,
        terms: Layers = 4,
        inverse_iterations: Count = 500,
    ) -> None:
        dim = math.prod(shape)
        steps: list[Flow] = []
        for _ in range(n_flows):
            steps += [
                AffineFiLM((dim,), context_dim, max_log_scale),
                ResidualBlock(dim, context_dim, width, depth, lipschitz, exact_dim, terms, inverse_iterations),
                GatedActivation(activation, (dim,)),
            ]
        super().__init__(steps, (dim,))
        self.inverse_residual = math.nan

    def inverse(self, z: Tensor, context: Context) -> Tensor:
        x = super().inverse(z, context)
        with torch.no_grad():
            residual = (self.forward(x, context)[0] - z).abs().amax()
        self.inverse_residual = residual.item()
        log.info("flow=residual: %d samples inverted, residual at most %.2g", len(z), self.inverse_residual)
        return x
