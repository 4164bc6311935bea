"""Every activation of conf/activation is a strictly increasing bijection of the line, and so is its gated form."""

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor

from flowdiff.bijections.activations import ELU, Activation, Identity, LeakyReLU, Softplus, Spline, Swish, Tanh
from flowdiff.bijections.splines import knots, spline
from flowdiff.errors import ConfigError, spell
from flowdiff.flows.context import Context
from flowdiff.flows.gated import GatedActivation
from tests.helpers.configs import build, choices, node

ACTIVATIONS = choices("activation")
every = pytest.mark.parametrize("name", ACTIVATIONS)


def grid(dtype: torch.dtype = torch.float64) -> Tensor:
    """Points on both sides of 0, dense near it, up to 1e4; none at 0, where leakyrelu has a kink."""
    half = torch.cat([torch.linspace(0.001, 12, 4001), torch.logspace(1.1, 4, 200)]).to(dtype)
    return torch.cat([-half.flip(0), half])


@every
def test_strictly_increasing(name: str) -> None:
    y = build("activation", name)()(grid())
    assert (y.diff() > 0).all()


@every
def test_onto(name: str) -> None:
    ends = build("activation", name)()(torch.tensor([-1e6, 1e6], dtype=torch.float64))
    assert ends[0] < -1e4 and ends[1] > 1e4


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slope_is_the_derivative_and_within_its_bounds(name: str, dtype: torch.dtype) -> None:
    activation = build("activation", name)()
    x = grid(dtype).requires_grad_()
    (gradient,) = torch.autograd.grad(activation(x).sum(), x)
    slope = activation.slope(x)
    assert slope.dtype == dtype
    torch.testing.assert_close(slope, gradient)
    assert slope.min() >= activation.lowest_slope - 1e-6 and activation.lowest_slope > 0
    assert slope.max() <= activation.leak + (1 - activation.leak) * activation.highest_raw_slope + 1e-6


@every
def test_finite_second_derivative(name: str) -> None:
    x = torch.cat([grid(), torch.zeros(1, dtype=torch.float64)]).requires_grad_()
    (first,) = torch.autograd.grad(build("activation", name)()(x).sum(), x, create_graph=True)
    assert first.isfinite().all()
    if first.requires_grad:  # identity has a constant slope
        assert torch.autograd.grad(first.sum(), x)[0].isfinite().all()


def gated(name: str, gate: float, n: int) -> GatedActivation:
    module = GatedActivation(build("activation", name), (n,)).double()
    with torch.no_grad():
        module.gate.fill_(gate)
    return module


def context(n: int, kappa: float | None = None) -> Context:
    kappas = torch.linspace(0.01, 1, n, dtype=torch.float64) if kappa is None else torch.full((n,), kappa)
    return Context(torch.zeros(n, 1), kappas.double())


@every
@pytest.mark.parametrize("gate", [0.0, 0.3, 1.0])
def test_gated_inverse_and_slope(name: str, gate: float) -> None:
    x = grid().view(-1, 2)
    module, c = gated(name, gate, 2), context(len(x))
    y, log_det = module(x, c)
    torch.testing.assert_close(module.inverse(y, c), x, rtol=1e-9, atol=1e-9)
    inner = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(module(inner, c)[0].sum(), inner)
    assert (slope > 0).all()
    torch.testing.assert_close(log_det, slope.log().sum(1))
    if gate == 0:
        assert torch.equal(y, x)
        assert (log_det == 0).all()


@every
def test_gated_inverse_in_float32_and_far_away(name: str) -> None:
    module = gated(name, 1.0, 1).float()
    y = torch.tensor([0.0, 1e-6, 0.1, -3.0, 40.0, -1e3, 1e6, -1e6])[:, None]
    c = Context(torch.zeros(8, 1), torch.ones(8))
    x = module.inverse(y, c)
    torch.testing.assert_close(module(x, c)[0], y, rtol=1e-5, atol=1e-6)


def test_the_gate_stays_between_0_and_1_and_can_leave_its_start() -> None:
    x = torch.tensor([[-2.0, 0.5, 3.0]], dtype=torch.float64)
    outside = {-0.7: 0.0, 1.8: 1.0}
    for gate, clamped in outside.items():
        y = gated("tanh", gate, 3)(x, context(1, 1.0))[0]
        torch.testing.assert_close(y, gated("tanh", clamped, 3)(x, context(1, 1.0))[0])
    for gate in (0.0, -0.7, 1.8):
        module = gated("tanh", gate, 3)
        module(x, context(1, 1.0))[0].sum().backward()
        assert (module.gate.grad != 0).all()


def test_kappa_takes_the_activation_back_to_the_identity() -> None:
    x = grid()[None]
    module = GatedActivation(build("activation", "tanh"), (1,)).double()
    torch.nn.init.ones_(module.gate)
    full = module(x, context(1, 1.0))[0] - x
    torch.testing.assert_close(module(x, context(1, 0.25))[0] - x, 0.25 * full)


def splines(shape: tuple[int, ...], scale: float = 2.0) -> GatedActivation:
    """A gated spline with random coefficients."""
    module = GatedActivation(Spline, shape).double()
    with torch.no_grad():
        module.activation.coefficients.normal_(0, scale, generator=torch.Generator().manual_seed(0))
    return module


@pytest.mark.parametrize("scale", [1.0, 50.0])
@pytest.mark.parametrize("gate", [0.0, 0.4, 1.0])
def test_splines_of_random_coefficients(gate: float, scale: float) -> None:
    module = splines((2,), scale)
    torch.nn.init.constant_(module.gate, gate)
    x = torch.linspace(-5, 5, 1001, dtype=torch.float64)[:, None].expand(-1, 2).clone().requires_grad_()
    y, log_det = module(x, context(1, 0.7))
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert (y.diff(dim=0) > 0).all() and (slope > 0).all()
    torch.testing.assert_close(log_det, slope.log().sum(1))
    torch.testing.assert_close(module.inverse(y, context(1, 0.7)), x, rtol=1e-9, atol=1e-9)
    raw, raw_slope = module.activation.raw(x), module.activation.raw_slope(x)
    low, high = module.activation.lowest_raw_slope, module.activation.highest_raw_slope
    assert low <= raw_slope.min() and raw_slope.max() <= high
    torch.testing.assert_close(torch.autograd.grad(raw.sum(), x)[0], raw_slope)
    assert (raw[:, 0] - raw[:, 1]).abs().max() > 0.5, "every coordinate has its own"


def test_gate_and_kappa_take_the_knots_of_a_spline_to_the_identity() -> None:
    module = splines((1,))
    corners = knots(module.activation.coefficients, 4.0, 2.0)
    x = corners.x.T[1:-1]
    full = spline(x, corners)[0] - x
    torch.nn.init.constant_(module.gate, 0.6)
    torch.testing.assert_close(module(x, context(1, 0.25))[0] - x, 0.6 * 0.25 * full)
    assert full.abs().max() > 0.3


def test_a_spline_is_the_identity_at_the_start_and_learns_from_there() -> None:
    module, x = GatedActivation(Spline, (3,)).double(), torch.linspace(-3, 3, 30, dtype=torch.float64).view(10, 3)
    y, log_det = module(x, context(1, 1.0))
    assert torch.equal(y, x) and (log_det == 0).all()
    (y.square().sum() - log_det.sum()).backward()
    assert (module.activation.coefficients.grad.abs().sum(1) > 0).all()


def test_splines_are_shared_where_the_gate_is() -> None:
    """A gate of shape (C, 1, 1) has one spline per channel."""
    module, x = splines((2, 1, 1)), torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(1)).double()
    y, log_det = module(x, context(3))
    torch.testing.assert_close(module.inverse(y, context(3)), x)
    for i, alone in enumerate(x):
        turned, change = module(alone[None].flip(2, 3), Context(torch.zeros(1, 1), context(3).kappa[i : i + 1]))
        torch.testing.assert_close(turned.flip(2, 3)[0], y[i])
        torch.testing.assert_close(change[0], log_det[i])


@pytest.mark.parametrize("make", [Softplus, ELU, Tanh])
def test_leak_0_is_an_ablation_that_is_no_bijection(make: type[Activation]) -> None:
    activation = make(leak=0.0)
    assert not activation.is_bijection
    module = GatedActivation(lambda: activation, (1,)).double()
    assert not module.normalized
    torch.nn.init.ones_(module.gate)
    log_det = module(torch.tensor([[-800.0], [800.0]], dtype=torch.float64), context(2, 1.0))[1]
    assert log_det.isfinite().all()
    assert make(leak=0.1).is_bijection


def test_formulas() -> None:
    x = torch.linspace(-4, 4, 81, dtype=torch.float64)
    leak = 0.3
    for activation, raw in [
        (Softplus(beta=2.0, leak=leak), torch.log1p((2 * x).exp()) / 2),
        (ELU(alpha=0.7, leak=leak), torch.where(x > 0, x, 0.7 * (x.exp() - 1))),
        (Tanh(leak=leak), x.tanh()),
        (Swish(beta=1.5, leak=leak), x / (1 + (-1.5 * x).exp())),
    ]:
        torch.testing.assert_close(activation(x), leak * x + (1 - leak) * raw)
    torch.testing.assert_close(LeakyReLU(0.4)(x), torch.where(x > 0, x, 0.4 * x))
    assert torch.equal(Identity()(x), x)
    assert LeakyReLU(3.0).lowest_slope == 1.0


@pytest.mark.parametrize("beta", [0.1, 1.0, 7.0])
def test_swish_is_increasing_exactly_when_it_says_so(beta: float) -> None:
    x = torch.linspace(-3, -2, 100001, dtype=torch.float64) / beta  # where its slope is least
    assert (Swish(beta, leak=0.0909)(x).diff() > 0).all()
    for leak in (0.0, 0.05, 0.09, 0.09075):
        with pytest.raises(ConfigError, match=r"leak=.*larger than 0\.0908"):
            Swish(beta, leak)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("softplus", "beta", 0),
        ("softplus", "beta", "two"),
        ("softplus", "leak", -0.1),
        ("tanh", "leak", 1.5),
        ("tanh", "leak", "much"),
        ("tanh", "leak", None),
        ("elu", "alpha", -1.0),
        ("elu", "leak", float("nan")),
        ("leakyrelu", "negative_slope", 0.0),
        ("swish", "leak", 0.0),
        ("swish", "beta", float("inf")),
        ("spline", "bins", 1),
        ("spline", "bound", 0.0),
        ("spline", "max_log_slope", 7.0),
    ],
)
def test_mistakes_are_named(name: str, key: str, value: object) -> None:
    make = instantiate(node("activation", name) | {key: value})
    with pytest.raises(Exception, match=f"{key}={spell(value)}: ") as caught:
        make()
    assert isinstance(caught.value, ConfigError) or isinstance(caught.value.__cause__, ConfigError)
