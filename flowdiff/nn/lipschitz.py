r"""A network with a Lipschitz constant of at most 1, whatever its weights, and a Jacobian in closed form.

With n hidden layers, d inputs and outputs, hidden width w and the embedding e of σ and class,

    h₀ = x,     h_i = a_i(e) ∘ φ(s_i(e) ∘ Ŵ_i h_{i−1} + b_i(e)),     g(x; e) = Ŵ_{n+1} h_n,

    ∂g/∂x = Ŵ_{n+1} D_n Ŵ_n ⋯ D_1 Ŵ_1,     D_i = diag(a_i s_i φ'(·)),     Ŵ = W/max(1, ‖W‖₂).

‖W‖₂ is the exact spectral norm, not a running estimate (Miyato et al. 2018, arXiv:1802.05957, iterate on a stored
vector). φ is LipSwish, swish(βx)/(β·1.0998) with a learned β > 0 (Chen et al. 2019, arXiv:1906.02735, section 3.3):
smooth, with slopes in [−0.091, 1]. a and s are in (−1, 1), so that every factor has norm at most 1.

For a determinant the shorter side is enough: det(I_d + UV) = det(I_w + VU), here with U = Ŵ_{n+1}. If w < d, the
w × w matrix D_n Ŵ_n ⋯ D_1 (Ŵ_1 Ŵ_{n+1}) therefore stands for the Jacobian; of any power it has the same trace.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowdiff.nn.bounds import SWISH_LOWEST_SLOPE
from flowdiff.nn.dropout import drop_values

STEEPEST = 1 - SWISH_LOWEST_SLOPE  # of swish: its slopes at x and −x add up to 1


def at_most_unit_norm(weight: Tensor) -> Tensor:
    """W/max(1, ‖W‖₂), W a matrix.

    ‖W‖₂ = |Wᵀv| with v the leading eigenvector of W Wᵀ. As v maximises it, the norm's gradient is that of |Wᵀv| with v
    held fixed: exact, finite at W = 0, and without the gaps between eigenvalues that the derivative of v would need.
    """
    short = weight if weight.shape[0] <= weight.shape[1] else weight.T
    with torch.no_grad():
        leading = torch.linalg.eigh(short @ short.T)[1][:, -1]
    return weight * (leading @ short).square().sum().clamp(min=1).rsqrt()


def lip_swish(x: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """φ(x) and φ'(x), the shape of x; β is broadcast against it."""
    s = torch.sigmoid(beta * x)
    value = x * s / STEEPEST
    return value, s / STEEPEST + beta * value * (1 - s)


class Layers(NamedTuple):
    """The network with its weights normalised, for one batch of embeddings.

    Attributes:
        weights: Ŵ_1 … Ŵ_{n+1}.
        amplitudes, scales, shifts: a_i, s_i and b_i, (B, w) for every hidden layer.
    """

    weights: list[Tensor]
    amplitudes: tuple[Tensor, ...]
    scales: tuple[Tensor, ...]
    shifts: tuple[Tensor, ...]


class Jacobian:
    """Products with the matrix that stands for ∂g/∂x in determinants, (B, size, size), size = min(d, w).

    Args:
        weights: Ŵ_1 … Ŵ_{n+1}.
        slopes: the diagonals of D_1 … D_n, (B, w) each.
    """

    def __init__(self, weights: list[Tensor], slopes: list[Tensor]) -> None:
        first, *inner, last = weights
        width, dim = first.shape
        self.size = min(width, dim)
        self.slopes = slopes
        self.weights = [first @ last, *inner] if width < dim else [first, *inner]
        self.last = None if width < dim else last

    def __call__(self, rows: Tensor) -> Tensor:
        """Its product with each of the vectors in `rows`, (n, size) for all samples or (B, n, size): (B, n, size)."""
        for weight, slope in zip(self.weights, self.slopes, strict=True):
            rows = rows @ weight.T * slope[:, None]
        return rows if self.last is None else rows @ self.last.T


class LipschitzMLP(nn.Module):
    """g(x; e) with |g(x; e) − g(y; e)| ≤ |x − y|; 0 at initialisation.

    Dropout drops amplitudes and keeps them in [−1, 1], so that the bound holds in training steps too.

    Args:
        dim: d.
        context_dim: length of e.
        width: w.
        depth: n, the number of hidden layers.
    """

    def __init__(self, dim: int, context_dim: int, width: int, depth: int) -> None:
        super().__init__()
        sizes = [dim] + [width] * depth
        self.weights = nn.ParameterList(
            nn.init.orthogonal_(torch.empty(*size)) for size in zip(sizes[1:], sizes[:-1], strict=True)
        )
        self.weights.append(torch.zeros(dim, width))
        self.film = nn.Linear(context_dim, 3 * depth * width)
        self.raw_beta = nn.Parameter(torch.zeros(depth, width))
        self.depth = depth

    def layers(self, embedding: Tensor, dropout: float = 0.0) -> Layers:
        """What is the same for every x: embedding (B, E), and the share of amplitudes that are dropped."""
        a, s, b = (t.chunk(self.depth, 1) for t in self.film(embedding).chunk(3, 1))
        amplitudes = tuple(drop_values(torch.tanh(1 + t), dropout).clamp(-1, 1) for t in a)
        scales = tuple(torch.tanh(1.5 + t) for t in s)
        return Layers([at_most_unit_norm(w) for w in self.weights], amplitudes, scales, b)

    def forward(self, x: Tensor, layers: Layers) -> tuple[Tensor, Jacobian]:
        """g(x; e), of the shape (B, d) of x, and its Jacobian."""
        h, slopes = x, []
        *hidden, last = layers.weights
        beta = F.softplus(self.raw_beta)
        for i, (amplitude, scale) in enumerate(zip(layers.amplitudes, layers.scales, strict=True)):
            value, slope = lip_swish(torch.addcmul(layers.shifts[i], scale, h @ hidden[i].T), beta[i])
            h = amplitude * value
            slopes.append(amplitude * scale * slope)
        return h @ last.T, Jacobian(layers.weights, slopes)
