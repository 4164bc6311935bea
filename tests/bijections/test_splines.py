"""Rational-quadratic splines: zuko's numbers, the inverse on a million points, the tails."""

import math

import pytest
import torch
from torch import Tensor
from zuko.transforms import MonotonicRQSTransform

from flowdiff.bijections.splines import Knots, knots, slope_bounds, spline, spline_inverse
from flowdiff.options import LogSlope, problem

BINS, BOUND, MOST = 8, 4.0, 2.0


def parameters(*shape: int, scale: float = 1.0, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    normal = torch.randn(*shape, 3 * BINS - 1, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return scale * normal


def points(n: int, *shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """Four in five inside ±4, the others outside."""
    return 3 * torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def zuko_spline(theta: Tensor, bound: float, most: float) -> MonotonicRQSTransform:
    """zuko's with the same parameters; its bounds a/(1 + |a|/c), where ours are c·tanh(a/c), are undone first."""

    def undone(a: Tensor, c: float) -> Tensor:
        bounded = c * torch.tanh(a / c)
        return bounded / (1 - bounded.abs() / c)

    widths, heights, slopes = theta.split([BINS, BINS, BINS - 1], -1)
    inputs = undone(widths, most / 2), undone(heights, most / 2), undone(slopes, most)
    return MonotonicRQSTransform(*inputs, bound=bound, slope=math.exp(-most))


@pytest.mark.parametrize(("bound", "most"), [(4.0, 2.0), (1.5, 0.7), (10.0, 5.0)])
@pytest.mark.parametrize("shared", [True, False], ids=["one spline per coordinate", "one per point"])
def test_zukos_value_log_derivative_and_inverse(bound: float, most: float, shared: bool) -> None:
    theta = parameters(5, scale=most) if shared else parameters(400, 5, scale=most)
    x = points(400, 5) * bound / 4
    reference, k = zuko_spline(theta, bound, most), knots(theta, bound, most)
    y, slope = spline(x, k)
    expected, log_slope = reference.call_and_ladj(x)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(slope.log(), log_slope, rtol=0, atol=1e-8)
    torch.testing.assert_close(spline_inverse(x, k), reference.inv(x), rtol=0, atol=1e-8)
    assert (y - x).abs().max() > 0.2 * bound and (y == x).any()


@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_on_a_million_points(scale: float, dtype: torch.dtype) -> None:
    k = knots(parameters(2000, scale=scale, dtype=dtype), BOUND, MOST)
    x = points(500, 2000, dtype=dtype)
    eps = torch.finfo(dtype).eps
    y, slope = spline(x, k)
    back = spline_inverse(y, k)
    # y has a rounding error of eps·4 or so, which the inverse divides by the slope
    assert ((back - x).abs() * slope.clamp(max=1)).max() < 40 * eps
    assert ((spline(back, k)[0] - y).abs() / slope.clamp(min=1)).max() < 40 * eps
    assert spline_inverse(x, k).isfinite().all()


def test_at_and_beside_the_knots() -> None:
    """Value and slope are those of the knots, from both sides; so is the inverse."""
    k = knots(parameters(6, scale=3.0), BOUND, MOST)
    for shift in (-1e-12, 0.0, 1e-12):
        y, slope = spline((k.x + shift).T, k)
        torch.testing.assert_close(y.T, k.y, rtol=0, atol=1e-9)
        torch.testing.assert_close(slope.T, k.slope, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(spline_inverse((k.y + shift).T, k).T, k.x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("most", [0.5, 2.0, 6.0])
def test_slope_within_its_bounds(most: float) -> None:
    low, high = slope_bounds(BINS, most)
    assert 0 < low < 1 < high
    signs = parameters(2000).sign()
    for theta in (50 * signs, 2 * parameters(2000)):
        slope = spline(torch.linspace(-4.1, 4.1, 401).double()[:, None], knots(theta, BOUND, most))[1]
        assert low <= slope.min() and slope.max() <= high
    assert slope.max() > 1.2


def test_slope_is_the_derivative_and_both_have_two_more() -> None:
    theta, x = parameters(3).requires_grad_(), points(7, 3).requires_grad_()
    y, slope = spline(x, knots(theta, BOUND, MOST))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope, gradient)

    def both(x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        y, slope = spline(x, knots(theta, BOUND, MOST))
        return y, slope.log()

    assert torch.autograd.gradcheck(both, (x, theta))
    assert torch.autograd.gradgradcheck(both, (x, theta))


def test_zero_parameters_are_exactly_the_identity() -> None:
    for dtype in (torch.float32, torch.float64):
        x = points(1000, 2, dtype=dtype)
        y, slope = spline(x, knots(torch.zeros(2, 3 * BINS - 1, dtype=dtype), BOUND, MOST))
        assert torch.equal(y, x) and (slope == 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_wholly_in_the_tails(dtype: torch.dtype) -> None:
    x = torch.tensor([[4.0], [-4.0], [4.5], [-1e5], [1e30]], dtype=dtype).requires_grad_()
    theta = parameters(1, scale=5.0, dtype=dtype).requires_grad_()
    k = knots(theta, BOUND, MOST)
    y, slope = spline(x, k)
    assert torch.equal(y, x) and (slope == 1).all()
    assert torch.equal(spline_inverse(x, k), x)
    first = torch.autograd.grad(y.sum() + slope.log().sum(), [x, theta], create_graph=True)
    assert (first[0] == 1).all() and (first[1] == 0).all()
    second = torch.autograd.grad(sum(f.square().sum() for f in first), [x, theta])
    assert all((s == 0).all() for s in second)


def test_strength_mixes_the_knots_with_the_identity() -> None:
    k, x = knots(parameters(3, scale=2.0), BOUND, MOST), points(200, 3)
    for strength in (0.0, 0.3, 1.0):
        mixed = Knots(k.x, k.x + strength * (k.y - k.x), 1 + strength * (k.slope - 1))
        each = torch.full_like(x[:, :1], strength)
        torch.testing.assert_close(spline(x, k, each), spline(x, mixed))
        torch.testing.assert_close(spline_inverse(x, k, each), spline_inverse(x, mixed))


@pytest.mark.parametrize("value", [0, -1.0, 6.5, "two", None, True, math.nan])
def test_bound_of_the_slopes(value: object) -> None:
    assert problem(6, LogSlope) is None
    assert problem(value, LogSlope) == "must be a number above 0 and at most 6"
