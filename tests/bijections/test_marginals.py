"""The map that makes a coordinate Gaussian, against SciPy's integrals and against samples."""

import math

import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from flowdiff.bijections.marginals import BROAD, PIECES, Marginals, gaussianise, pull, pull_inverse
from flowdiff.data.digits import Digits


@pytest.fixture
def marginals() -> Marginals:
    generator = torch.Generator().manual_seed(0)
    edges = torch.tensor([-1.0, -0.99, -0.4, 0.1, 0.6, 0.98, 1.0], dtype=torch.float64)
    return Marginals(edges, (2 * torch.randn(3, PIECES, generator=generator, dtype=torch.float64)).softmax(1))


def at(x: Tensor, sigma: float, marginals: Marginals) -> tuple[Tensor, Tensor]:
    return gaussianise(x, torch.full((len(x),), sigma), marginals)[:2]


@pytest.mark.parametrize("sigma", [0.002, 0.05, 0.7, 20.0])
def test_density_and_distribution_function(marginals: Marginals, sigma: float) -> None:
    """The noised histogram as an integral over its pieces, by quadrature."""
    mean, variance = marginals.moments()
    for point in (-1.5, -0.995, -0.2, 0.3, 0.99):
        z, log_slope = at(torch.full((1, 3), point, dtype=torch.float64), sigma, marginals)
        pdf = (log_slope - 0.5 * z.square() - 0.5 * math.log(2 * math.pi)).exp()[0]
        for i in range(3):
            total = 0.0
            for a, b, m in zip(marginals.edges, marginals.edges[1:], marginals.masses[i], strict=False):
                low, high = max(a.item(), point - 12 * sigma), min(b.item(), point + 12 * sigma)
                if low < high:
                    mass = integrate.quad(stats.norm(point, sigma).pdf, low, high, epsabs=1e-12)[0]
                    total += m.item() / (b - a).item() * mass
            scale = 2 * math.sqrt(variance[i].item() + sigma**2)
            far = (point - mean[i].item()) / scale
            broad = math.exp(-0.5 * far**2) / (scale * math.sqrt(2 * math.pi))
            assert pdf[i].item() == pytest.approx((1 - BROAD) * total + BROAD * broad, rel=1e-6)


@pytest.mark.parametrize("sigma", [0.002, 0.05, 0.7, 20.0])
def test_slope_monotone_and_inverse(marginals: Marginals, sigma: float) -> None:
    x = torch.linspace(-3, 3, 6001, dtype=torch.float64)[:, None].expand(-1, 3).clone().requires_grad_()
    z, log_slope = at(x, sigma, marginals)
    (slope,) = torch.autograd.grad(z.sum(), x)
    assert (z.diff(dim=0) > 0).all()
    torch.testing.assert_close(slope.log(), log_slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("sigma", [0.002, 0.05, 0.7, 20.0])
def test_in_part(marginals: Marginals, sigma: float, share: float) -> None:
    """Slope, monotony and inverse of the mean of the identity and the whole map; the ends are those two."""
    x = torch.linspace(-3, 3, 6001, dtype=torch.float64)[:, None].expand(-1, 3).clone().requires_grad_()
    level, g = torch.full((6001,), sigma, dtype=torch.float64), torch.full((6001,), share, dtype=torch.float64)
    y, log_slope = pull(x, level, marginals, g)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert (y.diff(dim=0) > 0).all()
    torch.testing.assert_close(slope.log(), log_slope, rtol=1e-6, atol=1e-6)
    if share == 0:
        torch.testing.assert_close(y, x)
    if share == 1:
        mean, variance = marginals.moments()
        torch.testing.assert_close(y, mean + (variance + sigma**2).sqrt() * at(x, sigma, marginals)[0])
    wide = torch.linspace(-60, 60, 241, dtype=torch.float64)[:, None].expand(-1, 3)
    back = pull_inverse(wide, level[:241], marginals, g[:241])
    torch.testing.assert_close(pull(back, level[:241], marginals, g[:241])[0], wide, rtol=1e-7, atol=1e-7)


def test_finite_a_hundred_thousand_away(marginals: Marginals) -> None:
    x = torch.tensor([[-1e5], [-30.0], [30.0], [1e5]], dtype=torch.float64).expand(-1, 3).clone().requires_grad_()
    z, log_slope = at(x, 0.002, marginals)
    (slope,) = torch.autograd.grad(z.sum() + log_slope.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), x)
    assert z.isfinite().all() and log_slope.isfinite().all() and slope.isfinite().all() and second.isfinite().all()


@pytest.mark.parametrize("sigma", [0.02, 0.3, 5.0])
def test_noised_digits_become_normal(sigma: float) -> None:
    data = Digits()
    k, _ = data.images("train")
    generator = torch.Generator().manual_seed(0)
    x = data.to_model(k, generator)
    x = (x + sigma * torch.randn(x.shape, generator=generator)).flatten(1)
    z, _ = at(x, sigma, data.statistics(0).marginals())
    assert z.mean().abs() < 0.02
    assert z.std().item() == pytest.approx(1, abs=0.02)
    assert (z.quantile(torch.tensor([0.1, 0.9], dtype=z.dtype)) / 1.2816).abs().sub(1).abs().max() < 0.05


def test_pieces_of_data() -> None:
    """The ends have a piece of their own; few values, or only one, are enough."""
    width = 2 / 256
    levels = torch.tensor([0, 0, 0, 10, 100, 200, 255, 255])
    x = (levels + 0.5) * width - 1
    for values in (x[:, None], x[:1, None], x[[0, 7], None], torch.zeros(5, 2)):
        found = Marginals.from_data(values, width)
        assert found.edges.shape == (PIECES + 1,) and (found.edges.diff() > 0).all()
        torch.testing.assert_close(found.masses.sum(1), torch.ones(values.shape[1], dtype=torch.float64))
    found = Marginals.from_data(x[:, None], width)
    torch.testing.assert_close(found.edges[:2], torch.tensor([-1, -1 + width], dtype=torch.float64))
    assert found.masses[0, 0].item() == pytest.approx(3 / 8)
    points = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    assert (Marginals.from_data(points).masses > 0).all()
