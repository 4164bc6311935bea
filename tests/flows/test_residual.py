"""Residual flows: the bound on slopes, the log-determinant exact and estimated, the inverse and how it is reported."""

import copy
import logging
import math

import pytest
import torch
from torch import Tensor

from flowdiff.data.digits import Digits
from flowdiff.denoisers.score_flow import ScoreFlow
from flowdiff.errors import ConfigError, FlowdiffError, spell
from flowdiff.flows.context import Context
from flowdiff.flows.logdet import Probes, estimate_log_det, exact_log_det
from flowdiff.flows.residual import ResidualBlock
from flowdiff.metrics.base import Evaluand
from flowdiff.metrics.likelihood import BitsPerDim
from flowdiff.nn.lipschitz import LipschitzMLP, at_most_unit_norm, lip_swish
from tests.helpers.models import IMAGE, make, points, random_flow, randomise, statistics

E = 5
FLOAT = torch.float64


def normal(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=FLOAT)


def block(dim: int, width: int, scale: float = 1.0, seed: int = 0, **values: float) -> ResidualBlock:
    """With normal weights of the given standard deviation: for scale 1 every bound is active."""
    made = ResidualBlock(dim, E, width, **values).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for i, p in enumerate(made.parameters()):
            p.copy_(scale * normal(*p.shape, seed=100 * seed + i))
    return made


def context(n: int, kappa: float = 1.0) -> Context:
    return Context(normal(n, E, seed=7), torch.full((n,), kappa, dtype=FLOAT))


def jacobian_of(step: ResidualBlock, x: Tensor, given: Context) -> Tensor:
    """dy/dx of every sample by autograd, (B, d, d)."""
    return torch.func.jacrev(lambda x: step(x, given)[0].sum(0))(x).transpose(0, 1)


@pytest.mark.parametrize("scale", [0.01, 0.3, 1.0, 30.0, 1e4])
@pytest.mark.parametrize(("dim", "width", "depth"), [(6, 4, 1), (6, 9, 1), (5, 5, 3), (2, 20, 2)])
def test_the_slopes_are_bounded_whatever_the_weights(dim: int, width: int, depth: int, scale: float) -> None:
    for seed in range(4):
        step = block(dim, width, scale, seed, depth=depth, lipschitz=0.9)
        x = 3 * normal(40, dim, seed=seed)
        given = context(40)._replace(dropout=0.5 if seed % 2 else 0.0)
        torch.manual_seed(seed)
        deviation = jacobian_of(step, x, given) - torch.eye(dim, dtype=FLOAT)
        assert torch.linalg.matrix_norm(deviation, ord=2).max() <= 0.9 + 1e-9


def test_the_bound_is_reached() -> None:
    """A linear layer's worth of slope is there: c itself, at weights that align all factors and open all gates."""
    step = block(1, 1, lipschitz=0.9)
    with torch.no_grad():
        for weight in step.network.weights:
            weight.fill_(50.0)
        step.network.film.weight.zero_()
        step.network.film.bias.copy_(torch.tensor([20.0, 20.0, 0.0]))
        step.network.raw_beta.fill_(3.0)
    slopes = jacobian_of(step, torch.linspace(-4, 4, 2001, dtype=FLOAT)[:, None], context(2001))
    assert 1.8999 < slopes.max().item() <= 1.9
    assert slopes.min().item() == pytest.approx(1 - 0.9 * 0.09984 / 1.09984, abs=1e-4)


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (5, 5), (1, 3), (3, 1)])
def test_normalised_weights(shape: tuple[int, int]) -> None:
    weight = normal(*shape)
    for scale in (1e-3, 0.2, 1.0, 5.0, 1e3):
        norm = torch.linalg.matrix_norm(scale * weight, ord=2).item()
        expected = scale * weight / max(1.0, norm)
        torch.testing.assert_close(at_most_unit_norm(scale * weight), expected)
    assert torch.autograd.gradcheck(at_most_unit_norm, (2 * weight).requires_grad_())
    zero = torch.zeros(shape, dtype=FLOAT, requires_grad=True)
    (gradient,) = torch.autograd.grad(at_most_unit_norm(zero).sum(), zero)
    assert torch.equal(gradient, torch.ones_like(zero))


@pytest.mark.parametrize("beta", [0.1, 1.0, 7.0])
def test_lip_swish(beta: float) -> None:
    x = torch.linspace(-40 / beta, 40 / beta, 20_001, dtype=FLOAT, requires_grad=True)
    value, slope = lip_swish(x, torch.tensor(beta, dtype=FLOAT))
    torch.testing.assert_close(value, torch.nn.functional.silu(beta * x) / (beta * 1.09984))
    torch.testing.assert_close(slope, torch.autograd.grad(value.sum(), x)[0])
    assert 0.9999 < slope.max().item() <= 1 and slope.min().item() > -0.0908


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize(("dim", "width"), [(6, 4), (4, 6), (5, 5)])
def test_log_det_on_either_side(dim: int, width: int, depth: int) -> None:
    step, x, given = block(dim, width, depth=depth), normal(8, dim), context(8, 0.7)
    log_det = step(x, given)[1]
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian_of(step, x, given))[1])
    assert log_det.abs().max() > 1e-3


def test_exact_log_det_is_slogdet_with_its_derivatives() -> None:
    matrix = torch.eye(4, dtype=FLOAT) + 0.3 * normal(3, 4, 4)
    torch.testing.assert_close(exact_log_det(matrix), torch.linalg.slogdet(matrix)[1])
    ours, theirs = matrix.clone().requires_grad_(), matrix.clone().requires_grad_()
    (a,) = torch.autograd.grad(exact_log_det(ours).sum(), ours, create_graph=True)
    (b,) = torch.autograd.grad(torch.linalg.slogdet(theirs)[1].sum(), theirs, create_graph=True)
    torch.testing.assert_close(a, b)
    direction = normal(3, 4, 4, seed=1)
    second = [torch.autograd.grad((g * direction).sum(), m)[0] for g, m in ((a, ours), (b, theirs))]
    torch.testing.assert_close(*second)
    assert torch.autograd.gradgradcheck(exact_log_det, ours)


@pytest.mark.parametrize("exact_dim", [0, 64])
def test_derivatives_in_every_mode(exact_dim: int) -> None:
    """Forward over reverse and vmap, as Laplacians and divergences of the score take them, against double backward."""
    step, x, given = block(5, 4, exact_dim=exact_dim), normal(3, 5), context(3)

    def log_det(x: Tensor) -> Tensor:
        return step(x, given)[1].sum()

    columns = [torch.func.jvp(torch.func.grad(log_det), (x,), (e.expand_as(x),))[1] for e in torch.eye(5, dtype=FLOAT)]
    inner = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(log_det(inner), inner, create_graph=True)
    rows = [torch.autograd.grad(g.sum(), inner, retain_graph=True)[0] for g in gradient.unbind(1)]
    torch.testing.assert_close(torch.stack(columns, 2), torch.stack(rows, 1))
    hessian = torch.func.hessian(log_det)(x)  # vmap of forward over reverse
    torch.testing.assert_close(torch.stack([hessian[i, :, i] for i in range(3)]), torch.stack(rows, 1))
    assert hessian[0, :, 1].abs().max() == 0, "samples don't interact"


def wide(seed: int = 0, **values: float) -> ResidualBlock:
    """100 coordinates, width 128: above exact_dim. Its last weight is near the first's transpose: a large trace."""
    made = block(100, 128, 0.3, seed, **values)
    with torch.no_grad():
        first, last = made.network.weights
        last.mul_(0.3).add_(first.T)
    return made


def draws(step: ResidualBlock, x: Tensor, given: Context, direction: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """n fresh estimates of the log-determinant of one x (1, d) and of its slope, in rows that share N, (n/20, 20)."""
    values, slopes = [], []
    fresh = Context(given.embedding.expand(20, -1), given.kappa.expand(20), probes="fresh")
    for _ in range(n // 20):
        points = x.expand(20, -1).clone().requires_grad_()
        value = step(points, fresh)[1]
        (gradient,) = torch.autograd.grad(value.sum(), points)
        values.append(value.detach())
        slopes.append((gradient * direction).sum(1))
    return torch.stack(values), torch.stack(slopes)


def test_the_estimate_and_its_gradient_are_unbiased() -> None:
    step, x, given = wide(terms=1), normal(1, 100), context(1)
    assert isinstance(step.probes, Probes) and not step.exact
    exact = ResidualBlock(100, E, 128, exact_dim=100).double()
    exact.load_state_dict(step.state_dict())
    assert exact.probes is None and exact.exact
    inner = x.clone().requires_grad_()
    truth = exact(inner, given)[1]
    (gradient,) = torch.autograd.grad(truth.sum(), inner)
    slope = gradient.norm().item()
    torch.manual_seed(0)
    for drawn, expected in zip(draws(step, x, given, gradient / slope, 4_000), (truth.item(), slope), strict=True):
        means = drawn.mean(1)
        error = (means.std() / math.sqrt(len(means))).item()
        assert 0 < error < 0.015 * abs(expected), "too coarse to tell"
        assert abs(means.mean().item() - expected) < 3.5 * error
    # one term alone is not, and the test can tell
    with torch.no_grad():
        factor = step.lipschitz * given.kappa[:, None, None]
        product = step.network(x, step.network.layers(given.embedding))[1]
        signs = 2.0 * torch.randint(2, (1, 4000, 100)).to(FLOAT) - 1
        cut = estimate_log_det(lambda rows: factor * product(rows), signs, [1.0])
    assert abs(cut.item() - truth.item()) > 0.05 * abs(truth.item())


@pytest.mark.parametrize("terms", [0, 3])
def test_random_lengths_are_weighted_by_their_probability(terms: int) -> None:
    probes = Probes(3, terms, 0.6)
    torch.manual_seed(0)
    lengths = [probes(1, "fresh")[1] for _ in range(20_000)]
    for k in range(1, terms + 4):
        weights = torch.tensor([weights[k - 1] if len(weights) >= k else 0.0 for weights in lengths])
        assert weights.mean().item() == pytest.approx(1.0, abs=4 * weights.std().item() / 20_000**0.5 + 1e-12)
    assert probes(2, "long")[1][:32] == [1.0] * 32


def test_the_same_estimate_at_each_call_but_in_training_steps() -> None:
    step, x, given = wide(), normal(4, 100), context(4)
    first = step(x, given)[1]
    assert torch.equal(step.train()(x, given)[1], first)
    alone = step(x[2:3], Context(given.embedding[2:3], given.kappa[2:3]))[1]
    torch.testing.assert_close(alone, first[2:3])
    random = given._replace(probes="fresh")
    torch.manual_seed(1)
    fresh = step(x, random)[1]
    assert not torch.equal(step(x, random)[1], fresh)
    torch.manual_seed(1)
    assert torch.equal(step(x, random)[1], fresh)
    assert torch.equal(step(x, given)[1], first)
    assert not any("probes" in name for name in step.state_dict())


def test_estimates_are_twice_differentiable() -> None:
    step, given = block(3, 3, exact_dim=0), context(2)
    x = normal(2, 3).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: step(x, given)[1], x)


def model(**overrides: float) -> ScoreFlow:
    made = make(flow="residual", overrides={f"flow.{key}": value for key, value in overrides.items()}).double().eval()
    assert isinstance(made, ScoreFlow)
    made.fit(statistics())
    randomise(made)
    return made


def test_an_estimated_model_has_the_score_of_its_own_density() -> None:
    estimated, exact = model(exact_dim=0), model()
    assert exact.exact and not estimated.exact
    x, sigma, labels = points()
    score, log_prob = estimated.score_and_log_prob(x, sigma, labels)
    inner = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(estimated.log_prob(inner, sigma, labels).sum(), inner)
    torch.testing.assert_close(score, gradient)
    difference = (log_prob - exact.log_prob(x, sigma, labels)).abs()
    assert 1e-6 < difference.max() < 2, "8 fixed vectors: near the exact one, but not it"


def test_inverse_reports_its_residual(caplog: pytest.LogCaptureFixture) -> None:
    flow = random_flow("residual").flow
    flow = copy.deepcopy(flow)
    assert math.isnan(flow.inverse_residual)  # type: ignore[arg-type]
    given = Context(normal(6, 14), torch.ones(6, dtype=FLOAT))
    z = normal(6, *IMAGE)
    with caplog.at_level(logging.INFO, "flowdiff"):
        x = flow.inverse(z, given)
    residual = (flow(x, given)[0] - z).abs().max().item()
    assert flow.inverse_residual == residual < 1e-12
    assert f"6 samples inverted, residual at most {residual:.2g}" in caplog.text


def test_an_inverse_that_does_not_converge_names_its_residual() -> None:
    step, z = block(6, 9, inverse_iterations=3), normal(5, 6)
    with pytest.raises(FlowdiffError, match=r"residual (\S+) after 3 iterations.*flow.inverse_iterations") as caught:
        step.inverse(z, context(5))
    given, factor = context(5), step.lipschitz * context(5).kappa[:, None]
    layers = step.network.layers(given.embedding)
    steps = [z]
    for _ in range(3):
        steps.append(z - factor * step.network(steps[-1], layers)[0])
    residual = (step(steps[2], given)[0] - z).norm(dim=1).max().item()
    assert f"residual {residual:.2g} " in str(caught.value)
    with pytest.raises(FlowdiffError, match="residual nan"):
        step.inverse(z * math.nan, context(5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_inverse_converges_at_the_bound_and_far_away(dtype: torch.dtype) -> None:
    step = block(64, 80, 3.0, lipschitz=0.97, inverse_iterations=2000).to(dtype)
    given = Context(*(t.to(dtype) for t in context(4)[:2]))
    z = normal(4, 64).to(dtype) * torch.tensor([1e-3, 1.0, 1e2, 1e5], dtype=dtype)[:, None]
    back = step(step.inverse(z, given), given)[0]
    torch.testing.assert_close(back, z, rtol=50 * torch.finfo(dtype).eps, atol=50 * torch.finfo(dtype).eps)


def test_class_and_noise_level_do_not_touch_the_bound() -> None:
    network = LipschitzMLP(4, E, 6, 2).double()
    with torch.no_grad():
        for i, p in enumerate(network.parameters()):
            p.copy_(2 * normal(*p.shape, seed=i))
    x = normal(1, 4).expand(200, -1)
    y, j = network(x, network.layers(5 * normal(200, E)))
    assert (y.std(0) > 1e-3).all()
    assert torch.linalg.matrix_norm(j(torch.eye(4, dtype=FLOAT)), ord=2).max() <= 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lipschitz", 1.0),
        ("lipschitz", 0),
        ("lipschitz", True),
        ("width", 0),
        ("depth", 0),
        ("n_flows", 0),
        ("exact_dim", -1),
        ("terms", 0),
        ("inverse_iterations", 0),
    ],
)
def test_mistakes_are_named(key: str, value: float) -> None:
    with pytest.raises(Exception, match=rf"{key}={spell(value)}: must be") as caught:
        model(**{key: value})
    assert isinstance(caught.value, ConfigError) or isinstance(caught.value.__cause__, ConfigError)


def test_bits_per_dim_of_an_estimate_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "flowdiff")
    data = Digits(batch_size=64)
    found = {}
    for exact_dim in (64, 4):
        denoiser = make((1, 8, 8), 10, flow="residual", overrides={"flow.exact_dim": exact_dim}).eval()
        assert isinstance(denoiser, ScoreFlow)
        denoiser.fit(data.statistics(10))
        randomise(denoiser)
        evaluand = Evaluand(denoiser, data, seed=3, batch_size=100)
        before = torch.get_rng_state()
        found[exact_dim] = BitsPerDim()(evaluand)["bits_per_dim"]
        assert torch.equal(torch.get_rng_state(), before)
        assert ("estimate" in caplog.text) == (exact_dim == 4)
        assert BitsPerDim()(evaluand)["bits_per_dim"] == found[exact_dim]
    assert found[64].conditions["log_det"] == "exact" and found[4].conditions["log_det"] == "estimated"
    assert found[4].value != found[64].value
    assert abs(found[4].value - found[64].value) < found[4].conditions["standard_error"]
