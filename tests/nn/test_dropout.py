"""Dropout belongs to a training step: the model itself is the same function in train and eval mode."""

import pytest
import torch

from flowdiff.nn.dropout import Dropout, dropout
from tests.helpers.models import IMAGE, make, randomise


@pytest.mark.parametrize("flow", ["coupling", "conv", "spectral", "residual", "transformer"])
def test_only_inside_the_block(flow: str) -> None:
    model = make(IMAGE, 3, flow=flow).double()
    randomise(model)
    x, sigma, labels = torch.randn(4, *IMAGE, dtype=torch.float64), 0.5, torch.tensor([0, 1, 2, 0])
    before = model.train().log_prob(x, sigma, labels)
    torch.testing.assert_close(model.eval().log_prob(x, sigma, labels), before)
    with dropout(model, 0.5):
        assert (model.log_prob(x, sigma, labels) - before).abs().max() > 1e-3
    torch.testing.assert_close(model.log_prob(x, sigma, labels), before)


def test_share_and_scale() -> None:
    torch.manual_seed(0)
    layer, x = Dropout(), torch.ones(100_000)
    with dropout(torch.nn.Sequential(layer), 0.25):
        y = layer(x)
    assert abs((y == 0).double().mean().item() - 0.25) < 0.01
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / 0.75))


def test_closed_after_an_error() -> None:
    layer = Dropout()
    with pytest.raises(RuntimeError), dropout(torch.nn.Sequential(layer), 0.5):
        raise RuntimeError
    assert layer.share == 0
