"""The masked network sees what comes before in the order and nothing else; the inverse is exact."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flowdiff.bijections.splines import slope_bounds
from flowdiff.bijections.transforms import AffineTransform, SplineTransform, Transform, build
from flowdiff.errors import ConfigError
from flowdiff.flows.autoregressive import MADE, Autoregressive
from flowdiff.flows.context import Context
from tests.helpers.models import make, randomise

DIM, BATCH, EMBEDDING = 9, 5, 4
TRANSFORMS = [AffineTransform(), SplineTransform()]
ORDER = torch.tensor([4, 0, 8, 2, 6, 1, 3, 7, 5])

both = pytest.mark.parametrize("transform", TRANSFORMS, ids=["affine", "spline"])


def step(transform: Transform, width: int = 24, order: Tensor = ORDER) -> Autoregressive:
    module = Autoregressive(order, transform, EMBEDDING, width, depth=2).double()
    randomise(module)
    return module


def batch(dim: int = DIM) -> tuple[Tensor, Context]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(BATCH, dim, generator=generator, dtype=torch.float64)
    embedding = torch.randn(BATCH, EMBEDDING, generator=generator, dtype=torch.float64)
    return x, Context(embedding, torch.linspace(0.2, 1, BATCH, dtype=torch.float64))


def jacobians(module: Autoregressive, x: Tensor, context: Context) -> Tensor:
    """dz/dx of every sample, rows and columns in the order of the step."""
    full = torch.autograd.functional.jacobian(lambda x: module(x, context)[0].sum(0), x).movedim(1, 0)
    return full[:, module.order][:, :, module.order]


@both
def test_the_jacobian_is_triangular_in_the_order(transform: Transform) -> None:
    module, (x, context) = step(transform), batch()
    jacobian = jacobians(module, x, context)
    assert (jacobian.triu(1) == 0).all()
    assert (jacobian.diagonal(dim1=1, dim2=2) > 0).all()
    below = torch.ones(DIM, DIM).tril(-1).bool()
    assert (jacobian[:, below] != 0).all(), "every coordinate sees all before it"
    log_det = module(x, context)[1]
    torch.testing.assert_close(log_det, jacobian.diagonal(dim1=1, dim2=2).log().sum(1))


@both
@pytest.mark.parametrize("width", [1, 4, 24])
def test_inverse(transform: Transform, width: int) -> None:
    module, (x, context) = step(transform, width), batch()
    z = module(x, context)[0]
    torch.testing.assert_close(module.inverse(z, context), x, rtol=1e-10, atol=1e-10)
    assert (jacobians(module, x, context).triu(1) == 0).all()
    assert (z - x).abs().mean() > 0.05


def test_parameters_are_those_of_a_network_that_is_given_the_earlier_coordinates_alone() -> None:
    """MADE against one plain network per coordinate, made of its weights."""
    module, (x, context) = MADE(ORDER, 3, EMBEDDING, width=24, depth=1).double(), batch()
    randomise(module)
    degree = [i * DIM // 24 for i in range(24)]
    scale, shift = module.film(context.embedding).chunk(2, 1)
    for place, i in enumerate(ORDER.tolist()):
        seen, units = ORDER[:place], [u for u in range(24) if degree[u] <= place]
        first, inner, outer = (
            module.first.weight.clone(),
            module.inner[0].weight.clone(),
            module.outer[0].weight.clone(),
        )
        for u in units:
            later = [j for j in range(DIM) if j not in ORDER[: degree[u]].tolist()]
            first[u, later] = 0
            later = [v for v in range(24) if degree[v] > degree[u]]
            inner[u, later] = outer[u, later] = 0
        limited = x[:, seen] / (1 + (x[:, seen] / 8).square()).sqrt()
        h = limited @ first[units][:, seen].T + module.first.bias[units]
        r = (1 + scale[:, units]) * (F.silu(h) @ inner[units][:, units].T + module.inner[0].bias[units])
        h = h + F.silu(r + shift[:, units]) @ outer[units][:, units].T + module.outer[0].bias[units]
        for j, row in enumerate(range(i, 3 * DIM, DIM)):
            out = F.silu(h) @ module.last.weight[row, units] + module.last.bias[row]
            torch.testing.assert_close(module(x, context.embedding)[:, j, i], out)
            torch.testing.assert_close(module.at(i, x, context.embedding)[:, j], out)


def test_the_first_coordinate_depends_on_the_context() -> None:
    module, (x, context) = step(AffineTransform()), batch()
    first = module(x[:1].expand(BATCH, -1), context)[0][:, ORDER[0]]
    assert first.diff().abs().min() > 1e-4


@pytest.mark.parametrize("flow", ["autoregressive", "autoregressive_spline"])
def test_orders_alternate_and_one_coordinate_is_enough(flow: str) -> None:
    orders = [s.order for s in make(flow=flow).flow.steps if isinstance(s, Autoregressive)]
    assert len(orders) == 3
    raster = torch.arange(len(orders[0]))
    assert torch.equal(orders[0], raster) and torch.equal(orders[1], raster.flip(0)) and torch.equal(orders[2], raster)
    x, context = batch(1)
    alone = step(SplineTransform(), order=torch.zeros(1, dtype=torch.long))
    torch.testing.assert_close(alone.inverse(alone(x, context)[0], context), x)


def test_a_transform_that_is_none_is_named() -> None:
    with pytest.raises(ConfigError, match=r"transform=spline: must be a node"):
        build("spline", 2.0)  # type: ignore[arg-type]
    for key, value in {"bins": 1, "bound": 0.0}.items():
        with pytest.raises(ConfigError, match=rf"{key}={value}: "):
            SplineTransform(**{key: value})
    with pytest.raises(ConfigError, match=r"max_log_scale=9: "):
        SplineTransform(max_log_scale=9)


@both
def test_a_transform_is_the_identity_at_0_and_bounded(transform: Transform) -> None:
    x = batch()[0]
    y, log_slope = transform.forward(x, torch.zeros(BATCH, transform.size, DIM, dtype=x.dtype))
    assert torch.equal(y, x) and (log_slope == 0).all()
    extreme = 1e4 * torch.randn(BATCH, transform.size, DIM, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    extreme[:, 1] = 0.3  # the shift has no bound
    y, log_slope = transform.forward(x, extreme)
    assert (y - x).abs().max() > 1
    low, high = (1.0, 1.0) if isinstance(transform, AffineTransform) else slope_bounds(8, 2.0)
    assert math.log(low) - 2 <= log_slope.min() and log_slope.max() <= math.log(high) + 2
    torch.testing.assert_close(transform.inverse(y, extreme), x, rtol=1e-9, atol=1e-9)
