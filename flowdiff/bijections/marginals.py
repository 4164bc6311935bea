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
beside it. Nothing here is learned: values and derivatives are computed in closed form, outside of the tape.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

PIECES = 6
BROAD = 1e-3
LOG_ROOT_2PI = 0.5 * math.log(2 * math.pi)
TINY = 1e-300  # below it only the broad Gaussian is left
TAIL = -600.0  # log-probability below which Φ⁻¹ begins with its expansion


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
        low, high = _widen(x.min().item() - bin_width / 2, x.max().item() + bin_width / 2)
        inner = x[(x > low + bin_width) & (x < high - bin_width)]
        values = inner.sort().values  # torch.quantile has a limit on the number of values
        quantiles = values[_ranks(len(values))] + bin_width / 2 if len(values) else values
        edges = _choose_edges(low, high, bin_width, quantiles.tolist())
        piece = torch.bucketize(x, edges[1:-1])
        counts = torch.stack([(piece == j).sum(0) for j in range(PIECES)], 1).double()
        return cls(edges, _smooth(counts))

    @classmethod
    def from_counts(cls, values: Tensor, counts: Tensor, bin_width: float = 0.0) -> "Marginals":
        """`from_data`, from how often each coordinate has each of few values.

        Args:
            values: (L,), increasing.
            counts: (d, L) int64; each row has the same sum, N.
            bin_width: as for `from_data`.
        """
        pooled = counts.sum(0)
        values, counts, pooled = values[pooled > 0].double(), counts[:, pooled > 0], pooled[pooled > 0]
        low, high = _widen(values[0].item() - bin_width / 2, values[-1].item() + bin_width / 2)
        is_inner = (values > low + bin_width) & (values < high - bin_width)
        inner, until = values[is_inner], pooled[is_inner].cumsum(0)
        ranks = _ranks(int(until[-1])) if len(until) else until
        quantiles = inner[torch.searchsorted(until, ranks, right=True)] + bin_width / 2
        edges = _choose_edges(low, high, bin_width, quantiles.tolist())
        piece = torch.bucketize(values, edges[1:-1])
        found = torch.zeros(len(counts), PIECES, dtype=torch.int64).index_add_(1, piece, counts)
        return cls(edges, _smooth(found.double()))

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of each coordinate, (d,)."""
        a, b = self.edges[:-1], self.edges[1:]
        mean = self.masses @ ((a + b) / 2)
        return mean, self.masses @ ((a * a + a * b + b * b) / 3) - mean.square()


def _widen(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ranks(n: int) -> Tensor:
    """Of the inner edges among n sorted values."""
    return (torch.arange(1, PIECES - 2, dtype=torch.float64) / (PIECES - 2) * (n - 1)).long()


def _choose_edges(low: float, high: float, bin_width: float, quantiles: list[float]) -> Tensor:
    """(PIECES + 1,) float64: the ends, a bin beside each, and quantiles; where they coincide, the widest is halved."""
    cuts = {low, low + bin_width, high - bin_width, high, *quantiles}
    edges = sorted(cut for cut in cuts if low <= cut <= high)
    edges = [a for a, b in zip(edges, [*edges[1:], math.inf], strict=True) if b - a > 1e-9]
    while len(edges) < PIECES + 1:
        wide = max(range(len(edges) - 1), key=lambda j: edges[j + 1] - edges[j])
        edges.insert(wide + 1, (edges[wide] + edges[wide + 1]) / 2)
    return torch.tensor(edges, dtype=torch.float64)


def _smooth(counts: Tensor) -> Tensor:
    """Masses (d, PIECES) of counts (d, PIECES) of N values each, with half a value more a piece."""
    extra = 0.5 * PIECES
    pooled = counts.sum(0) / counts.sum()
    return (counts + extra * pooled) / (counts[0].sum() + extra)


def attach(x: Tensor, value: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """A value that was computed without a tape, as a function of x: its first and second derivatives are those given.

    v + v'·δ + ½v''·δ² with δ = x − x.detach(), which is 0: Taylor's formula, whatever takes the derivatives. A tape of
    three operations stands for the many of a formula, an integral or a root. Third derivatives are lost.

    Args:
        x: of any float type, without tangents of its detached self.
        value, first, second: v(x), dv/dx and d²v/dx² at x, elementwise, shape of x.
    """
    step = x.to(value.dtype) - x.detach().to(value.dtype)
    return torch.addcmul(value, step, torch.addcmul(first, step, second, value=0.5))


def normal_quantile(log_p: Tensor) -> Tensor:
    """z = Φ⁻¹(exp(l)) for l ≤ log ½, float64, with dz/dl = exp(l + z²/2)·√(2π) =: z' and d²z/dl² = z'·(1 + z·z')."""
    wanted = log_p.detach()
    u = (-2 * (wanted + LOG_ROOT_2PI)).clamp(min=4.0)  # far out: log Φ(z) = −z²/2 − log|z| − ½ log 2π
    start = torch.special.ndtri(wanted.clamp(min=TAIL).exp())
    z = torch.where(wanted > TAIL, start, -(u - u.log()).sqrt())
    for _ in range(2):  # Newton's method for log Φ(z) = l, which is concave in z
        now = torch.special.log_ndtr(z)
        z = z - (now - wanted) * (now + z.square() / 2 + LOG_ROOT_2PI).exp()
    if not _is_differentiated(log_p):
        return z
    first = (wanted + z.square() / 2 + LOG_ROOT_2PI).exp()
    return attach(log_p, z, first, first * (1 + z * first))


def _is_differentiated(x: Tensor) -> bool:
    """Whether a derivative by x may be taken, in whatever way."""
    if torch.compiler.is_compiling() or x.requires_grad:
        return True
    return forward_ad.unpack_dual(x).tangent is not None


def _density(t: Tensor) -> Tensor:
    return (-0.5 * t.square() - LOG_ROOT_2PI).exp()


def _column(values: Tensor) -> Tensor:
    """One number a row (B,) as (B, 1), float64; one a coordinate, (B, d), as it is."""
    return values.double().reshape(len(values), -1)


def _broad(sigma: Tensor, marginals: Marginals) -> tuple[Tensor, Tensor]:
    """Mean (d,) and standard deviation (B, d) of the Gaussian that is mixed in at σ (B, 1), float64."""
    mean, variance = marginals.moments()
    return mean.double(), 2 * (variance.double() + sigma.square()).sqrt()


def _normal(sigma: Tensor, marginals: Marginals) -> tuple[Tensor, Tensor]:
    """Mean (d,) and standard deviation (B, d) of the coordinates noised by σ (B,), float64."""
    mean, variance = marginals.moments()
    return mean.double(), (variance.double() + _column(sigma).square()).sqrt()


def _log_sum(p: Tensor, log_q: Tensor) -> Tensor:
    """log(p + q)."""
    log_p = torch.where(p > TINY, p.clamp(min=TINY).log(), -math.inf)
    return torch.logsumexp(torch.stack([log_p, log_q]), 0)


class Curve(NamedTuple):
    """An increasing map at x, elementwise.

    Attributes:
        value: z(x).
        log_slope: l(x) = log dz/dx.
        first, second: dl/dx and d²l/dx².
    """

    value: Tensor
    log_slope: Tensor
    first: Tensor
    second: Tensor


def gaussianise(x: Tensor, sigma: Tensor, marginals: Marginals) -> Curve:
    """z of x (B, d) noised by σ (B,): all (B, d) float64.

    With f the density, q = f'/f and r = f''/f: l' = q + z·z' and l'' = r − q² + z'² + z·z'·l', where z' = exp(l).
    """
    x, sigma = x.double(), _column(sigma)
    edges, masses = marginals.edges.double(), marginals.masses.double()
    share = ((1 - BROAD) * masses / edges.diff()).T[:, None]  # (PIECES, 1, d)
    t = (x - edges[:, None, None]) / sigma
    below, above, density = torch.special.ndtr(t), torch.special.ndtr(-t), _density(t)
    pdf = _sum_pieces(share, below)
    cdf = sigma * _sum_pieces(share, t * below + density)
    survival = -sigma * _sum_pieces(share, density - t * above)

    mean, scale = _broad(sigma, marginals)
    far = (x - mean) / scale
    low = cdf + BROAD * torch.special.ndtr(far) < 0.5
    log_broad = math.log(BROAD) + torch.special.log_ndtr(torch.where(low, far, -far))
    log_tail = _log_sum(torch.where(low, cdf, survival), log_broad)
    log_broad_pdf = math.log(BROAD) - 0.5 * far.square() - LOG_ROOT_2PI - scale.log()
    log_pdf = _log_sum(pdf, log_broad_pdf)
    z = normal_quantile(log_tail)
    z = torch.where(low, z, -z)
    log_slope = log_pdf + z.square() / 2 + LOG_ROOT_2PI

    of_broad = (log_broad_pdf - log_pdf).exp()  # of the density
    of_pieces = torch.where(pdf > TINY, (-log_pdf).exp(), 0.0)
    q = of_pieces * _sum_pieces(share, density) / sigma - of_broad * far / scale
    r = of_broad * (far.square() - 1) / scale.square() - of_pieces * _sum_pieces(share, t * density) / sigma.square()
    slope = log_slope.exp()
    first = torch.addcmul(q, z, slope)
    second = r - q.square() + slope.square() + z * slope * first
    return Curve(z, log_slope, first, second)


def _sum_pieces(share: Tensor, at_edges: Tensor) -> Tensor:
    """Σ_j share_j·(v_j − v_{j+1}) of values at the edges (PIECES + 1, B, d)."""
    return (share * (at_edges[:-1] - at_edges[1:])).sum(0)


def pull(x: Tensor, sigma: Tensor, marginals: Marginals, share: Tensor) -> tuple[Tensor, Tensor]:
    """y and log dy/dx, both (B, d) float64, of x (B, d) noised by σ (B,), with a share g (B,).

    By x they have a first and a second derivative, in closed form (`attach`); by σ, where it is asked for, all.
    """
    if _by_sigma if torch.compiler.is_compiling() else _is_differentiated(sigma):
        return _pull(x, sigma, marginals, share)[:2]
    at = _pull(x.detach(), sigma, marginals, share)
    if not _is_differentiated(x):
        return at[:2]
    slope = at.log_slope.exp()
    return attach(x, at.value, slope, slope * at.first), attach(x, at.log_slope, at.first, at.second)


_by_sigma = False  # whether derivatives by σ are taken, for torch.compile


@contextmanager
def derivatives_by_sigma() -> Iterator[None]:
    """Within it derivatives by σ are taken, which torch.compile can't see of a tensor inside a torch.func.grad."""
    global _by_sigma
    before, _by_sigma = _by_sigma, True
    try:
        yield
    finally:
        _by_sigma = before


def _pull(x: Tensor, sigma: Tensor, marginals: Marginals, share: Tensor) -> Curve:
    """With w = g·(v + σ²)^½·z'/y', z's share in y': (log y')' = w·l', (log y')'' = w·(l'' + (1 − w)·l'²)."""
    z, log_slope, first, second = gaussianise(x, sigma, marginals)
    g = _column(share)
    mean, deviation = _normal(sigma, marginals)
    y = torch.lerp(x.double(), mean + deviation * z, g)
    bent = (g.clamp(min=1e-300) * deviation).log() + log_slope
    found = torch.logaddexp((1 - g).clamp(min=1e-12).log(), bent)
    w = (bent - found).exp()
    return Curve(y, found, w * first, w * (second + (1 - w) * first.square()))


def pull_inverse(y: Tensor, sigma: Tensor, marginals: Marginals, share: Tensor) -> Tensor:
    """The x (B, d), float64, with pull(x)[0] = y, by Newton's method, and bisections where that leads astray.

    It lies between y and the x of g = 1. That is a quantile of a mixture, which lies between those of its components:
    a histogram's between its ends moved by σz. Few coordinates (those that are nearly constant) take many steps: each
    is left out of what is computed as soon as it is found.
    """
    y, levels, g = y.double(), _column(sigma), _column(share)
    mean, deviation = _normal(sigma, marginals)
    z = (y - mean) / deviation
    centre, scale = _broad(levels, marginals)
    broad = centre + scale * z
    low = torch.minimum(torch.minimum(marginals.edges[0].double() + levels * z, broad), y) - 1e-9
    high = torch.maximum(torch.maximum(marginals.edges[-1].double() + levels * z, broad), y) + 1e-9
    found, left = torch.empty(y.numel(), dtype=y.dtype, device=y.device), torch.arange(y.numel(), device=y.device)
    state = [t.expand_as(y).reshape(1, -1) for t in ((low + high) / 2, y, low, high, levels, g)]
    for i in range(120):
        x, wanted, low, high, levels, g = state
        found[left] = x[0]
        now, log_slope = pull(x, levels, Marginals(marginals.edges, marginals.masses[left % y.shape[1]]), g)
        far = ((now - wanted).abs() > 1e-12 * (1 + wanted.abs()))[0]
        if not bool(far.any()):
            break
        low, high = torch.where(now < wanted, x, low), torch.where(now > wanted, x, high)
        newton = x - (now - wanted) * (-log_slope).exp()
        inside = (newton > low) & (newton < high) & (i % 4 < 3)
        x = torch.where(inside, newton, (low + high) / 2)
        left, state = left[far], [t[:, far] for t in (x, wanted, low, high, levels, g)]
    return found.view_as(y)
