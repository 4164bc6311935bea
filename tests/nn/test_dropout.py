"""Dropout belongs to a training step: the model itself is the same function in train and eval mode."""

import pytest
import torch

from flowdiff.denoisers import Perturbation
from flowdiff.nn.dropout import drop_values
from tests.helpers.configs import choices
from tests.helpers.models import IMAGE, make, points, randomise

WITHOUT = ("linear", "zuko")  # no networks, or the library's


@pytest.mark.parametrize("flow", sorted(set(choices("flow")) - set(WITHOUT)))
def test_a_flow_drops_only_what_a_step_says(flow: str) -> None:
    model = make(IMAGE, 3, flow=flow).double()
    randomise(model)
    x, sigma, labels = points()
    before = model.train().log_prob(x, sigma, labels)
    torch.testing.assert_close(model.eval().log_prob(x, sigma, labels), before)
    torch.manual_seed(0)
    dropped = model.log_prob(x, sigma, labels, Perturbation(dropout=0.5))
    assert (dropped - before).abs().max() > 1e-3
    torch.manual_seed(0)
    again = model.score_and_log_prob(x, sigma, labels, Perturbation(dropout=0.5))[1]
    torch.testing.assert_close(again, dropped)
    torch.testing.assert_close(model.log_prob(x, sigma, labels), before)


@pytest.mark.parametrize("denoiser", ["mlp", "unet"])
def test_a_free_network_too(denoiser: str) -> None:
    model = make((1, 8, 8), 3, denoiser=denoiser).double().train()
    randomise(model)
    x, sigma, labels = points(shape=(1, 8, 8))
    before = model(x, sigma, labels)
    assert torch.equal(model(x, sigma, labels), before)
    assert (model(x, sigma, labels, Perturbation(dropout=0.5)) - before).abs().max() > 1e-3
    assert torch.equal(model(x, sigma, labels), before)


def test_share_and_scale() -> None:
    torch.manual_seed(0)
    x = torch.ones(100_000)
    y = drop_values(x, 0.25)
    assert abs((y == 0).double().mean().item() - 0.25) < 0.01
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / 0.75))
    assert drop_values(x, 0.0) is x
