"""The masked convolutions see what comes before in the order and nothing else; the inverse, row by row, is exact."""

import pytest
import torch
from torch import Tensor

from flowdiff.bijections.transforms import AffineTransform, SplineTransform, Transform
from flowdiff.errors import ConfigError
from flowdiff.flows.context import Context
from flowdiff.flows.coupling import Coupling
from flowdiff.flows.pixelcnn import MaskedConvolutions, PixelCNNFlow
from tests.helpers.models import make, randomise

SHAPE = (3, 5, 4)  # groups of channels, rows, columns
BATCH, EMBEDDING = 3, 4

both = pytest.mark.parametrize("transform", [AffineTransform(), SplineTransform()], ids=["affine", "spline"])
orders = pytest.mark.parametrize("backwards", [False, True])


def step(transform: Transform, backwards: bool, depth: int = 2) -> MaskedConvolutions:
    module = MaskedConvolutions(SHAPE, transform, EMBEDDING, 9, depth, backwards).double()
    randomise(module)
    return module


def batch(shape: tuple[int, int, int] = SHAPE) -> tuple[Tensor, Context]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(BATCH, *shape, generator=generator, dtype=torch.float64)
    embedding = torch.randn(BATCH, EMBEDDING, generator=generator, dtype=torch.float64)
    return x, Context(embedding, torch.linspace(0.2, 1, BATCH, dtype=torch.float64))


@both
@orders
def test_the_jacobian_is_triangular_in_the_order_of_rows_columns_and_groups(
    transform: Transform, backwards: bool
) -> None:
    module, (x, context) = step(transform, backwards), batch()
    full = torch.autograd.functional.jacobian(lambda x: module(x, context)[0].sum(0), x).movedim(3, 0)
    # rows and columns in the order (row, column, channel)
    jacobian = full.permute(0, 2, 3, 1, 5, 6, 4).reshape(BATCH, x[0].numel(), x[0].numel())
    if backwards:
        jacobian = jacobian.flip(1, 2)
    assert (jacobian.triu(1) == 0).all()
    assert (jacobian.diagonal(dim1=1, dim2=2) > 0).all()
    log_det = module(x, context)[1]
    torch.testing.assert_close(log_det, jacobian.diagonal(dim1=1, dim2=2).log().sum(1))
    # and nothing near is left out: the neighbour above to the right, the one to the left, the channel before
    at = (2, 1, 1)  # row, column, channel
    row = jacobian[:, (2 * SHAPE[2] + 1) * SHAPE[0] + 1]
    for i, j, c in [(1, 2, 2), (1, 1, 0), (2, 0, 2), (*at[:2], 0)]:
        assert (row[:, (i * SHAPE[2] + j) * SHAPE[0] + c] != 0).all(), (i, j, c)


@both
@orders
@pytest.mark.parametrize("depth", [1, 2])
def test_inverse(transform: Transform, backwards: bool, depth: int) -> None:
    shape = (2, 9, 3)  # more rows than the network sees at once
    module = MaskedConvolutions(shape, transform, EMBEDDING, 9, depth, backwards).double()
    randomise(module)
    x, context = batch(shape)
    torch.testing.assert_close(module.inverse(module(x, context)[0], context), x, rtol=1e-9, atol=1e-9)


def test_the_first_layers_scale_does_not_depend_on_how_much_is_masked() -> None:
    torch.manual_seed(0)
    network = MaskedConvolutions((4, 14, 14), AffineTransform(), EMBEDDING, 64, 1).network
    h = network.first(torch.randn(200, 8, 14, 14))[:, :, 3:, 3:-3].std((0, 2, 3))
    first, last = h[:16].mean(), h[-16:].mean()
    assert 0.8 < first / last < 1.25


def test_odd_images_and_vectors_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"factor=2: must divide the image size 5×4"):
        PixelCNNFlow((1, 5, 4), EMBEDDING, torch.nn.Identity, factor=2)
    with pytest.raises(ConfigError, match=r"flow=pixelcnn: needs images"):
        PixelCNNFlow((2,), EMBEDDING, torch.nn.Identity)
    with pytest.raises(Exception, match=r"factor=0"):
        make((1, 4, 4), flow="pixelcnn", overrides={"flow.factor": 0})


@pytest.mark.parametrize(("shape", "groups"), [((1, 4, 6), 4), ((3, 5, 4), 3)])
def test_images_of_even_sides_are_unshuffled(shape: tuple[int, int, int], groups: int) -> None:
    flow = make(shape, flow="pixelcnn", overrides={"flow.n_flows": 1}).flow
    (step,) = (part for part in flow.modules() if isinstance(part, MaskedConvolutions))
    assert step.network.first.weight.shape[1] == 2 * groups


def test_couplings_alone_where_there_are_no_neighbours() -> None:
    one, none = {"flow.pixels.n_flows": 1}, {"flow.pixels": None}
    for shape, pixels, expected in (((1, 4, 4), one, 1), ((1, 4, 4), none, 0), ((6,), one, 0)):
        flow = make(shape, flow="pixelcnn_coupling", overrides={"flow.n_flows": 5, **pixels}).flow
        assert sum(isinstance(part, MaskedConvolutions) for part in flow.modules()) == expected
        assert sum(isinstance(part, Coupling) for part in flow.modules()) == 5
