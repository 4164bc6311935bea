r"""log det(I + K) of a contraction, ‖K‖₂ ≤ c < 1: exactly, or by an unbiased estimate from products with K.

    log det(I + K) = Σ_{k≥1} (−1)^{k+1} tr(Kᵏ)/k,          tr(Kᵏ) = E[vᵀKᵏv],  v of random signs (Hutchinson)

The series is cut at random without a bias (Russian roulette: Chen et al. 2019, arXiv:1906.02735, eq. 6): m terms are
always there, each further one comes with probability q, and term k is divided by P(N ≥ k) = q^{max(0, k−m)},

    log det(I + K) = E[Σ_{k=1}^{N} (−1)^{k+1}/k · vᵀKᵏv / P(N ≥ k)].

The variance is finite for every K if q > c²; here q = c, for which the terms shrink as fast as cᵏ whatever N is.
The estimate is a polynomial in the entries of K, so that its derivatives of every order are unbiased as well. The
paper's cheaper gradient, by a Neumann series, is a number without the right derivative of its own and would spoil the
denoising loss, which differentiates the score; it isn't used. That loss is a square: with an estimated score it is
larger by the score's variance.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flowdiff.flows.context import Probing

FIXED_PROBES = 8
LONG_SERIES = 32


class _LogAbsDet(torch.autograd.Function):
    """log|det A| of (B, n, n), differentiated by means of A⁻¹, which is given."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor, inverse: Tensor) -> Tensor:
        return torch.linalg.slogdet(matrix)[1]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (inverse,) = ctx.saved_tensors
        return gradient[..., None, None] * inverse.mT.contiguous(), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Tensor) -> Tensor:
        (inverse,) = ctx.saved_tensors
        return (inverse.mT * tangent).sum((-2, -1))


def exact_log_det(matrix: Tensor) -> Tensor:
    """log|det A| of invertible A (B, n, n), shape (B,).

    The same as slogdet, in half its time where second derivatives are taken: it inverts A once, for all of them.
    torch.compile can't follow it and takes slogdet.
    """
    if torch.compiler.is_compiling():
        return torch.linalg.slogdet(matrix)[1]
    return _LogAbsDet.apply(matrix, torch.linalg.inv_ex(matrix).inverse)


class Probes(nn.Module):
    """Vectors of random signs and a number of terms.

    Fixed ones make log p a deterministic function with a gradient, as samplers want it: its error is fixed, that of 8
    vectors and of a series cut after 32 terms. With fresh ones log p is a random number whose mean is exact. They come
    from torch's global generator on the CPU; vectors differ between the samples of a batch, N doesn't. In a long series
    32 terms are always there, so that what N adds, the same for a whole batch, is negligible.

    Args:
        size: length of a vector.
        terms: m.
        contraction: c.
    """

    fixed: Tensor

    def __init__(self, size: int, terms: int, contraction: float) -> None:
        super().__init__()
        self.terms, self.contraction = terms, contraction
        signs = torch.randint(2, (1, FIXED_PROBES, size), generator=torch.Generator().manual_seed(0))
        self.register_buffer("fixed", 2.0 * signs - 1, persistent=False)

    def forward(self, n: int, kind: Probing) -> tuple[Tensor, list[float]]:
        """For n samples: vectors (1, 8, size), or fresh ones (n, 1, size); and 1/P(N ≥ k) for k = 1 … N."""
        if kind == "fixed":
            return self.fixed, [1.0] * LONG_SERIES
        always = LONG_SERIES if kind == "long" else self.terms
        signs = 2 * torch.randint(2, (n, 1, self.fixed.shape[-1])) - 1
        further = int(torch.empty(()).geometric_(1 - self.contraction)) - 1
        return signs.to(self.fixed), [1.0] * always + [self.contraction**-k for k in range(1, further + 1)]


def estimate_log_det(product: Callable[[Tensor], Tensor], probes: Tensor, weights: list[float]) -> Tensor:
    """Σ_k (−1)^{k+1}/k · weights_k · mean over the probes of vᵀKᵏv, (B,).

    Args:
        product: rows (B or 1, p, n) to the products of K with each of them, (B, p, n).
        probes: v, (B or 1, p, n).
        weights: 1/P(N ≥ k) for k = 1 … N.
    """
    powers, total = probes, torch.zeros((), dtype=probes.dtype, device=probes.device)
    for k, weight in enumerate(weights, 1):
        powers = product(powers)
        total = total - (-1) ** k * weight / k * (powers * probes).sum(-1).mean(-1)
    return total
