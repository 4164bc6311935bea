r"""The usage guide's flow: n_flows × [invertible linear map in PLU form, FiLM by σ and class, activation].

The linear map is W = Pᵀ L U P with a fixed permutation P, L unit lower triangular and U upper triangular with the
positive diagonal exp(κs) (PLU form: Kingma & Dhariwal 2018, arXiv:1807.03039, eq. 10):

    U = diag(exp(κs)) + κŨ,      L = I + κL̃,      log|det W| = κ Σ s.

FiLM is y = exp(κ·a(e))·x + κ·b(e), with a and b linear in the embedding e of σ and the class.
"""

import math

import torch
from torch import Tensor, nn

from flowdiff.errors import ConfigError
from flowdiff.flows.base import ActivationFactory, Composite, Flow, Step
from flowdiff.flows.context import Context
from flowdiff.flows.gated import GatedActivation
from flowdiff.nn.bounds import soft_bound, zero_linear
from flowdiff.options import Count, Layers, checked
from flowdiff.tensors import per_sample

MOST_DIM = 8192  # of one PLU map: 0.5 GB


class PLULinear(Step):
    """W = Pᵀ L U P on the last axis of (B, …, d): on vectors, or as a 1×1 convolution with channels last.

    Args:
        dim: d.
        seed: chooses the permutation.
        max_log_scale: soft bound of |s|.

    Raises:
        ConfigError: more coordinates than a map's weights have room for.
    """

    permutation: Tensor
    strict_lower: Tensor

    def __init__(self, dim: int, seed: int = 0, max_log_scale: float = 3.0) -> None:
        super().__init__()
        if dim > MOST_DIM:
            gigabytes = 2 * dim**2 * 4 / 1e9
            allowed = (
                f"an invertible {dim}×{dim} map in PLU form has {gigabytes:.1f} GB of weights (of which training keeps "
                f"five copies); at most {MOST_DIM} coordinates: choose flow=conv, glow or transformer"
            )
            raise ConfigError("flow", "linear", allowed)
        order = torch.randperm(dim, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("permutation", order)
        self.register_buffer("strict_lower", torch.ones(dim, dim).tril(-1), persistent=False)
        self.lower = nn.Parameter(torch.zeros(dim, dim))
        self.upper = nn.Parameter(torch.zeros(dim, dim))
        self.log_diagonal = nn.Parameter(torch.zeros(dim))
        self.max_log_scale = max_log_scale

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """L̃, Ũ and s, in the order that P gives the coordinates."""
        upper = self.upper * self.strict_lower.T
        return self.lower * self.strict_lower, upper, soft_bound(self.log_diagonal, self.max_log_scale)

    def terms(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        lower, upper, log_diagonal = self._parts()
        kappa = per_sample(context.kappa, x)
        log_scale = kappa * log_diagonal
        places = x[0, ..., 0].numel()
        with torch.autocast(x.device.type, enabled=False):
            x = x.index_select(-1, self.permutation)
            h = torch.addcmul(log_scale.exp() * x, kappa, x @ upper.T)
            h = torch.addcmul(h, kappa, h @ lower.T)
            return h.index_select(-1, self.permutation.argsort()), places * log_scale

    def inverse(self, z: Tensor, context: Context) -> Tensor:
        x = torch.empty_like(z)
        order = self.permutation
        lower, upper, log_diagonal = self._parts()
        levels, member = context.kappa.unique(return_inverse=True)
        for i, kappa in enumerate(levels):  # one pair of triangular solves for each noise level in the batch
            rows = member == i
            h = z[rows][..., order].reshape(-1, z.shape[-1]).T
            h = torch.linalg.solve_triangular(kappa * lower, h, upper=False, unitriangular=True)
            h = torch.linalg.solve_triangular(torch.diag((kappa * log_diagonal).exp()) + kappa * upper, h, upper=True)
            x[rows] = h.T[:, order.argsort()].reshape(-1, *z.shape[1:])
        return x


class AffineFiLM(Step):
    """y = exp(κ·a(e))·x + κ·b(e), one scale and shift per entry of `shape`, broadcast over the sample.

    Args:
        shape: shape of scale and shift, e.g. (d,), or (C, H, W) for one per pixel, or (C, 1, 1).
        context_dim: length of e.
        max_log_scale: soft bound of |a|.
    """

    def __init__(self, shape: tuple[int, ...], context_dim: int, max_log_scale: float = 3.0) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.layer = zero_linear(context_dim, 2 * math.prod(shape))
        self.max_log_scale = max_log_scale

    def _terms(self, context: Context, like: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(like.device.type, enabled=False):  # its output is the log-determinant
            a, b = self.layer(context.embedding.to(like.dtype)).reshape(-1, 2, *self.shape).unbind(1)
        kappa = per_sample(context.kappa, like)
        return kappa * soft_bound(a, self.max_log_scale), kappa * b

    def terms(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._terms(context, x)
        return torch.addcmul(shift, log_scale.exp(), x), x[0].numel() / math.prod(self.shape) * log_scale

    def inverse(self, z: Tensor, context: Context) -> Tensor:
        log_scale, shift = self._terms(context, z)
        return (z - shift) * (-log_scale).exp()


class LinearFlow(Composite):
    """n_flows × [PLULinear, AffineFiLM, GatedActivation] on flattened samples.

    Args:
        shape: shape of a sample.
        context_dim: length of the embedding of σ and class.
        activation: makes the activation of a step.
        n_flows: number of steps.
        data_dim: if given, the number of coordinates that the data must have (the guide states it).
    """

    @checked
    def __init__(
        self,
        shape: tuple[int, ...],
        context_dim: int,
        activation: ActivationFactory,
        n_flows: Layers = 3,
        data_dim: Count | None = None,
    ) -> None:
        dim = math.prod(shape)
        if data_dim is not None and data_dim != dim:
            raise ConfigError("flow.data_dim", data_dim, f"the data have {dim} coordinates, shape {tuple(shape)}")
        steps: list[Flow] = []
        for i in range(n_flows):
            steps += [
                PLULinear(dim, seed=i),
                AffineFiLM((dim,), context_dim),
                GatedActivation(activation, (dim,)),
            ]
        super().__init__(steps, (dim,))
