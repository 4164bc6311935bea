r"""Monotone rational-quadratic splines with linear tails (Durkan et al. 2019, arXiv:1906.04032).

Through knots (x_k, y_k), k = 0…K, both increasing from −B to B, with slopes δ_k > 0 there, δ_0 = δ_K = 1. With
w = x_{k+1} − x_k, h = y_{k+1} − y_k, s = h/w, ξ = (x − x_k)/w and t = ξ(1 − ξ), in the bin of x:

    y     = y_k + h (sξ² + δ_k t) / D,                                   D = s + (δ_k + δ_{k+1} − 2s) t,
    dy/dx = s² (δ_{k+1} ξ² + 2st + δ_k (1 − ξ)²) / D²,

and y = x outside of ±B. The inverse is a root of a quadratic in ξ. The map has a continuous derivative; its second
derivative jumps at the knots, and so does the score of a density made of it.

The knots come from 3K − 1 unbounded numbers: w = 2B·softmax(·), h = 2B·softmax(·), δ = exp(·). If they are all 0, the
spline is the identity. Each is softly bounded, which bounds the slope:

    min(δ, s) / max(1, ½ + δ/(2s))²  ≤  dy/dx  ≤  4 max(δ, s).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from flowdiff.nn.bounds import soft_bound


class Knots(NamedTuple):
    """Splines of K bins, one for each entry of a shape S.

    Attributes:
        x, y: S × (K + 1), increasing.
        slope: S × (K + 1), positive.
    """

    x: Tensor
    y: Tensor
    slope: Tensor


def knots(parameters: Tensor, bound: float, max_log_slope: float) -> Knots:
    """The knots of the splines with these parameters.

    Args:
        parameters: S × (3K − 1): K for the widths, K for the heights, K − 1 for the slopes at the inner knots.
        bound: B.
        max_log_slope: soft bound M of |log δ|; the logits of widths and heights are softly bounded by M/2.
    """
    bins = (parameters.shape[-1] + 1) // 3
    sides, slopes = parameters.split([2 * bins, bins - 1], -1)
    lengths = soft_bound(sides, max_log_slope / 2).unflatten(-1, (2, bins)).exp()  # widths and heights, up to a factor
    inner = (2 * bound / lengths.sum(-1, keepdim=True)) * lengths[..., :-1].cumsum(-1) - bound
    x, y = F.pad(F.pad(inner, (1, 0), value=-bound), (0, 1), value=bound).unbind(-2)
    return Knots(x, y, F.pad(soft_bound(slopes, max_log_slope).exp(), (1, 1), value=1.0))


def slope_bounds(bins: int, max_log_slope: float) -> tuple[float, float]:
    """What dy/dx of every spline with this many bins and this soft bound lies between."""
    high = math.exp(max_log_slope)
    least, most = 1 / (1 + (bins - 1) * high), 1 / (1 + (bins - 1) / high)  # of a softmax with logits within ±M/2
    flattest, steepest = least / most, most / least
    return min(1 / high, flattest) / max(1.0, 0.5 + high / (2 * flattest)) ** 2, 4 * max(high, steepest)


class _Bin(NamedTuple):
    """The bin of a point. All but x and width are 0 for the identity."""

    x: Tensor  # x_k
    width: Tensor  # w
    offset: Tensor  # y_k − x_k
    stretch: Tensor  # s − 1
    left: Tensor  # δ_k − 1
    right: Tensor  # δ_{k+1} − 1


def _bin(point: Tensor, of: Tensor, k: Knots, strength: Tensor | None) -> tuple[Tensor, Tensor, _Bin]:
    """Whether a point is inside ±B, the point (−B if it isn't), and its bin among the knots `of`."""
    inside = (point > of[..., 0]) & (point < of[..., -1])
    point = torch.where(inside, point, of[..., 0])
    index = (point[..., None] >= of[..., 1:-1]).sum(-1)
    table = torch.stack(k, -1)
    *shape, count, _ = table.shape
    left = count * torch.arange(math.prod(shape), device=point.device).view(shape) + index
    ends = F.embedding(torch.stack([left, left + 1]), table.flatten(0, -2))  # the knots on both sides of the point
    (x, next_x), (y, next_y), slopes = ends.unbind(-1)
    width, offset = next_x - x, y - x
    deviations = [offset, (next_y - next_x - offset) / width, *(slopes - 1).unbind(0)]
    if strength is not None:
        deviations = [strength * deviation for deviation in deviations]
    return inside, point, _Bin(x, width, *deviations)


def spline(x: Tensor, k: Knots, strength: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """y and dy/dx, both of the shape of x.

    With the deviations from the identity ŝ = s − 1 and δ̂ = δ − 1 the formula above is

        y = x + (y_k − x_k) + wξ (s (ŝξ + δ̂_k (1 − ξ)) − (δ̂_k + δ̂_{k+1} − 2ŝ) t) / D,

    which is x exactly where they are 0.

    Args:
        x: broadcasts against S.
        k: the knots.
        strength: if given, in [0, 1] and broadcast against x, a factor of all deviations: y_k becomes
            x_k + strength·(y_k − x_k), and δ_k becomes 1 + strength·(δ_k − 1).
    """
    inside, point, b = _bin(x, k.x, k, strength)
    s, bend = 1 + b.stretch, b.left + b.right - 2 * b.stretch
    xi = (point - b.x) / b.width
    rest = 1 - xi
    denominator = s + bend * xi * rest
    change = s * (b.stretch * xi + b.left * rest) - bend * xi * rest
    y = x + b.offset + b.width * xi * change / denominator
    slope = 1 + b.right * xi.square() + 2 * b.stretch * xi * rest + b.left * rest.square()
    slope = slope * (s / denominator).square()
    return torch.where(inside, y, x), torch.where(inside, slope, torch.ones_like(slope))


def spline_inverse(y: Tensor, k: Knots, strength: Tensor | None = None) -> Tensor:
    """The x with spline(x) = y: the root in [0, 1] of aξ² + bξ + c = 0, in the form that doesn't cancel."""
    of = k.y if strength is None else k.x + strength[..., None] * (k.y - k.x)
    inside, point, b = _bin(y, of, k, strength)
    s = 1 + b.stretch
    rise = point - (b.x + b.offset)
    bend = rise * (b.left + b.right - 2 * b.stretch)
    a = b.width * s * (b.stretch - b.left) + bend
    minus_b = bend - b.width * s * (1 + b.left)
    c = -s * rise
    root = (minus_b.square() - 4 * a * c).clamp(min=0).sqrt()
    falling = minus_b > 0  # then a > 0
    top = torch.where(falling, minus_b + root, -2 * c)
    bottom = torch.where(falling, 2 * a, root - minus_b)
    xi = (top / bottom).clamp(0, 1)
    return torch.where(inside, b.x + xi * b.width, y)
