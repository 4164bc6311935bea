"""Actnorm takes its values from data once: from the first batch, never again, never after loading."""

import copy

import pytest
import torch
from torch import Tensor

from flowdiff.flows.actnorm import LIMIT, ActNorm
from flowdiff.flows.base import Composite
from flowdiff.flows.context import Context

CHANNELS = 6


def batch(n: int = 64, seed: int = 0) -> Tensor:
    """(n, 6, 3, 3), every channel with its own mean, from -3 to 3, and deviation, from 0.1 to 10."""
    generator = torch.Generator().manual_seed(seed)
    deviation = torch.logspace(-1, 1, CHANNELS, dtype=torch.float64).view(-1, 1, 1)
    mean = torch.linspace(-3, 3, CHANNELS, dtype=torch.float64).view(-1, 1, 1)
    return mean + deviation * torch.randn(n, CHANNELS, 3, 3, generator=generator, dtype=torch.float64)


def context(kappa: Tensor) -> Context:
    return Context(torch.zeros(len(kappa), 1, dtype=torch.float64), kappa)


def ones(n: int = 64) -> Context:
    return context(torch.ones(n, dtype=torch.float64))


def initialised(x: Tensor, given: Context) -> ActNorm:
    layer = ActNorm(CHANNELS).double()
    layer(x, given._replace(first_batch=True))
    return layer


@pytest.mark.parametrize("kappa", [1.0, 0.8])
def test_mean_zero_and_variance_one(kappa: float) -> None:
    x = batch()
    given = context(torch.full((64,), kappa, dtype=torch.float64))
    layer = initialised(x, given)
    y, logdet = layer(x, given)
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(CHANNELS).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(y.var((0, 2, 3), correction=0), torch.ones(CHANNELS).double(), rtol=0, atol=1e-9)
    by_hand = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True, correction=0)
    torch.testing.assert_close(y, by_hand)
    expected = -9 * x.std((0, 2, 3), correction=0).log().sum()
    torch.testing.assert_close(logdet, expected.expand(64))


def test_rows_count_by_their_kappa() -> None:
    x, kappa = batch(), torch.linspace(0.3, 1, 64, dtype=torch.float64)
    weights = kappa.view(-1, 1, 1, 1) / kappa.sum() / 9
    x = x / x.std((0, 2, 3), keepdim=True) * torch.linspace(0.5, 1.5, CHANNELS).view(-1, 1, 1)
    y, _ = initialised(x, context(kappa))(x, context(kappa))
    torch.testing.assert_close((weights * y).sum((0, 2, 3)), torch.zeros(CHANNELS).double(), rtol=0, atol=1e-9)
    centred = x - (weights * x).sum((0, 2, 3), keepdim=True)
    y, _ = initialised(centred, context(kappa))(centred, context(kappa))
    torch.testing.assert_close((weights * y**2).sum((0, 2, 3)), torch.ones(CHANNELS).double(), rtol=0, atol=2e-3)


def test_rows_that_cannot_be_moved_do_not_matter() -> None:
    x, kappa = batch(128), torch.ones(128, dtype=torch.float64)
    x[64:] *= 3
    kappa[64:] = 1e-6
    mixed, alone = initialised(x, context(kappa)), initialised(x[:64], ones())
    torch.testing.assert_close(mixed.log_scale, alone.log_scale, rtol=0, atol=0.02)
    torch.testing.assert_close(mixed.shift, alone.shift, rtol=0.02, atol=0.02)


def test_constant_channels_and_a_batch_of_one_stay_bounded() -> None:
    x = batch()
    x[:, 0], x[:, 1], x[:, 2] = 0.0, 5.0, 5.0 + 1e-7 * x[:, 2]
    layer = initialised(x, ones())
    y, logdet = layer(x, ones())
    assert y.isfinite().all()
    assert y[:, :2].abs().max() < 1e-6
    far = torch.full_like(x, 1e5)
    slopes = (layer(far + 1, ones())[0] - layer(far, ones())[0])[0, :, 0, 0]
    assert (slopes <= torch.tensor(LIMIT).exp() * 1.001).all()
    assert logdet.isfinite().all()
    single = initialised(torch.ones(1, CHANNELS, 1, 1, dtype=torch.float64), ones(1))
    assert single.log_scale.isfinite().all() and single.shift.isfinite().all()


def test_only_from_the_first_batch_and_only_once() -> None:
    layer = ActNorm(CHANNELS).double()
    for mode in (True, False):
        layer.train(mode)
        torch.testing.assert_close(layer(batch(), ones())[0], batch(), rtol=0, atol=0)
    whole = Composite([layer], (CHANNELS, 3, 3))
    assert layer.wants_first_batch and whole.wants_first_batch
    whole(batch(), ones()._replace(first_batch=True))
    assert not (layer.wants_first_batch or whole.wants_first_batch)
    before = copy.deepcopy(layer.state_dict())
    for mode in (True, False):
        layer.train(mode)
        layer(batch(seed=1), ones())
        layer(batch(seed=1), ones()._replace(first_batch=True))
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())


def test_a_loaded_layer_keeps_its_values() -> None:
    layer, loaded = initialised(batch(), ones()), ActNorm(CHANNELS).double()
    loaded.load_state_dict(layer.state_dict())
    y, _ = loaded(batch(seed=1), ones()._replace(first_batch=True))
    torch.testing.assert_close(y, layer(batch(seed=1), ones())[0], rtol=0, atol=0)
