r"""The distribution of single coordinates of noised data, and the map that makes each of them standard normal.

A coordinate's clean marginal is a histogram: mass m_j on the piece [a_j, a_{j+1}], uniformly. Noised by σ its density
and its distribution function have closed forms: with t_j = (x − a_j)/σ and S(t) = ∫Φ = tΦ(t) + φ(t),

    f(x; σ) = Σ_j m_j (Φ(t_j) − Φ(t_{j+1})) / (a_{j+1} − a_j),
    F(x; σ) = Σ_j m_j (S(t_j) − S(t_{j+1})) σ / (a_{j+1} − a_j).

Both are mixed, by a share of BROAD, with a Gaussian twice as wide as the data, which keeps the map moderate far from
them. Then

    z = Φ⁻¹(F(x; σ)),        log dz/dx = log f(x; σ) + z²/2 + ½ log 2π

is standard normal if x has this marginal (Gaussianisation: Chen & Gopinath 2000). It can be had in part, with a share
g ∈ [0, 1], as a mean of two increasing maps of the same mean m and variance v + σ²:

    y = (1 − g)·x + g·(m + (v + σ²)^½·z).

Everything is in float64, tails in logarithms: at σ = 0.002 a pixel is flat over its bin and falls by hundreds of nats
beside it.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

PIECES = 6
BROAD = 1e-3
LOG_ROOT_2PI = 0.5 * math.log(2 * math.pi)
TINY = 1e-300  # below it only the broad Gaussian is left


class Marginals(NamedTuple):
    """Histograms of d coordinates on common pieces.

    Attributes:
        edges: (PIECES + 1,), increasing.
        masses: (d, PIECES), each row summing to 1.
    """

    edges: Tensor
    masses: Tensor

    @classmethod
    def from_data(cls, x: Tensor, bin_width: float = 0.0) -> "Marginals":
        """Histograms of x (N, d), each value standing for an interval of width `bin_width` around it.

        The lowest and the highest value have a piece of their own (images are mostly black or white), the others are
        quantiles of all values together. Half a sample is added to each piece, in proportion to all coordinates.
        """
        x = x.double()
        low, high = x.min().item() - bin_width / 2, x.max().item() + bin_width / 2
        if high <= low:
            low, high = low - 0.5, high + 0.5
        inner = x[(x > low + bin_width) & (x < high - bin_width)]
        shares = torch.arange(1, PIECES - 2, dtype=torch.float64) / (PIECES - 2)
        cuts = {low, low + bin_width, high - bin_width, high}
        if len(inner):
            values = inner.sort().values  # torch.quantile has a limit on the number of values
            cuts |= set((values[(shares * (len(values) - 1)).long()] + bin_width / 2).tolist())
        edges = sorted(cut for cut in cuts if low <= cut <= high)
        edges = [a for a, b in zip(edges, [*edges[1:], math.inf], strict=True) if b - a > 1e-9]
        while len(edges) < PIECES + 1:  # halve the widest piece
            wide = max(range(len(edges) - 1), key=lambda j: edges[j + 1] - edges[j])
            edges.insert(wide + 1, (edges[wide] + edges[wide + 1]) / 2)
        found = torch.tensor(edges, dtype=torch.float64)
        piece = torch.bucketize(x, found[1:-1])
        counts = torch.stack([(piece == j).sum(0) for j in range(PIECES)], 1).double()
        pooled = counts.sum(0) / counts.sum()
        extra = 0.5 * PIECES
        return cls(found, (counts + extra * pooled) / (len(x) + extra))

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of each coordinate, (d,)."""
        a, b = self.edges[:-1], self.edges[1:]
        mean = self.masses @ ((a + b) / 2)
        return mean, self.masses @ ((a * a + a * b + b * b) / 3) - mean.square()


class NormalQuantile(torch.autograd.Function):
    """z = Φ⁻¹(exp(l)) for l ≤ log ½, elementwise, with dz/dl = exp(l + z²/2)·√(2π)."""

    @staticmethod
    def forward(log_p: Tensor) -> Tensor:
        root = (-2 * (log_p + LOG_ROOT_2PI)).clamp(min=1.0).sqrt()
        z = torch.where(log_p > -5, torch.special.ndtri(log_p.exp().clamp(min=1e-3)), -root)
        return _newton(z, log_p, steps=6)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.save_for_forward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        log_p, z = ctx.saved_tensors
        return grad * (log_p + z.square() / 2 + LOG_ROOT_2PI).exp()

    jvp = backward  # elementwise: the derivative is its own transpose


def _newton(z: Tensor, log_p: Tensor, steps: int) -> Tensor:
    """Newton's method for log Φ(z) = l, which is concave in z."""
    for _ in range(steps):
        now = torch.special.log_ndtr(z)
        z = z - (now - log_p) * (now + z.square() / 2 + LOG_ROOT_2PI).exp()
    return z


def normal_quantile(log_p: Tensor) -> Tensor:
    """z = Φ⁻¹(exp(l)) for l ≤ log ½.

    torch.compile can't follow the derivatives of `NormalQuantile`. There two more steps are taken from the
    result: k steps of Newton's method from the root itself have the root's first 2ᵏ − 1 derivatives.
    """
    if not torch.compiler.is_compiling():
        return NormalQuantile.apply(log_p)
    with torch.no_grad():
        z = NormalQuantile.forward(log_p.detach())
    return _newton(z.detach(), log_p, steps=2)


def _density(t: Tensor) -> Tensor:
    return (-0.5 * t.square() - LOG_ROOT_2PI).exp()


def _broad(sigma: Tensor, marginals: Marginals) -> tuple[Tensor, Tensor]:
    """Mean (d,) and standard deviation (B, d) of the Gaussian that is mixed in at σ (B, 1), float64."""
    mean, variance = marginals.moments()
    return mean.double(), 2 * (variance.double() + sigma.square()).sqrt()


def _normal(sigma: Tensor, marginals: Marginals) -> tuple[Tensor, Tensor]:
    """Mean (d,) and standard deviation (B, d) of the coordinates noised by σ (B,), float64."""
    mean, variance = marginals.moments()
    return mean.double(), (variance.double() + sigma.double().reshape(-1, 1).square()).sqrt()


def _log_sum(p: Tensor, log_q: Tensor) -> Tensor:
    """log(p + q)."""
    log_p = torch.where(p > TINY, p.clamp(min=TINY).log(), -math.inf)
    return torch.logsumexp(torch.stack([log_p, log_q]), 0)


def gaussianise(x: Tensor, sigma: Tensor, marginals: Marginals) -> tuple[Tensor, Tensor]:
    """z and log dz/dx, both (B, d) float64, of x (B, d) noised by σ (B,)."""
    x, sigma = x.double(), sigma.double().reshape(-1, 1)
    edges, masses = marginals.edges.double(), marginals.masses.double()
    share = (1 - BROAD) * masses / edges.diff()
    t = (x[..., None] - edges) / sigma[..., None]
    below, above, density = torch.special.ndtr(t), torch.special.ndtr(-t), _density(t)
    pdf = (share * (below[..., :-1] - below[..., 1:])).sum(-1)
    left, right = t * below + density, density - t * above
    cdf = sigma * (share * (left[..., :-1] - left[..., 1:])).sum(-1)
    survival = sigma * (share * (right[..., 1:] - right[..., :-1])).sum(-1)

    mean, scale = _broad(sigma, marginals)
    far = (x - mean) / scale
    low = cdf + BROAD * torch.special.ndtr(far) < 0.5
    log_broad = math.log(BROAD) + torch.special.log_ndtr(torch.where(low, far, -far))
    log_tail = _log_sum(torch.where(low, cdf, survival), log_broad)
    log_pdf = _log_sum(pdf, math.log(BROAD) - 0.5 * far.square() - LOG_ROOT_2PI - scale.log())
    z = normal_quantile(log_tail)
    z = torch.where(low, z, -z)
    return z, log_pdf + z.square() / 2 + LOG_ROOT_2PI


def pull(x: Tensor, sigma: Tensor, marginals: Marginals, share: Tensor) -> tuple[Tensor, Tensor]:
    """y and log dy/dx, both (B, d) float64, of x (B, d) noised by σ (B,), with a share g (B,)."""
    z, log_slope = gaussianise(x, sigma, marginals)
    g = share.double().reshape(-1, 1)
    mean, deviation = _normal(sigma, marginals)
    y = torch.lerp(x.double(), mean + deviation * z, g)
    left = (1 - g).clamp(min=1e-12).log()
    return y, torch.logaddexp(left, g.clamp(min=1e-300).log() + deviation.log() + log_slope)


def pull_inverse(y: Tensor, sigma: Tensor, marginals: Marginals, share: Tensor) -> Tensor:
    """The x (B, d), float64, with pull(x)[0] = y, by bisections and steps of Newton's method in turn.

    It lies between y and the x of g = 1. That is a quantile of a mixture, which lies between those of its components:
    a histogram's between its ends moved by σz.
    """
    y = y.double()
    levels = sigma.double().reshape(-1, 1)
    mean, deviation = _normal(sigma, marginals)
    z = (y - mean) / deviation
    centre, scale = _broad(levels, marginals)
    broad = centre + scale * z
    low = torch.minimum(torch.minimum(marginals.edges[0].double() + levels * z, broad), y) - 1e-9
    high = torch.maximum(torch.maximum(marginals.edges[-1].double() + levels * z, broad), y) + 1e-9
    x = (low + high) / 2
    for i in range(120):
        now, log_slope = pull(x, sigma, marginals, share)
        if bool(((now - y).abs() <= 1e-12 * (1 + y.abs())).all()):
            break
        low, high = torch.where(now < y, x, low), torch.where(now > y, x, high)
        newton = x - (now - y) * (-log_slope).exp()
        inside = (newton > low) & (newton < high)
        x = torch.where(inside, newton, (low + high) / 2) if i % 2 else (low + high) / 2
    return x
