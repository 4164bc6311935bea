"""Convolutional couplings on the unshuffled image."""

import torch

from experiments.common.counting import CallCounter
from flowdiff.flows.context import Context
from tests.helpers.models import make, points, randomise


@torch.no_grad()
def test_the_image_stays_unshuffled_between_steps_of_one_factor() -> None:
    model = make(flow="conv", overrides={"flow.n_flows": 4, "flow.factors": [2, 2, 4]}).double()
    randomise(model)
    x, sigma, _ = points()
    context = Context(torch.randn(len(x), 14, dtype=x.dtype), 1 / (1 + sigma))
    with CallCounter() as counter:
        z, logdet = model.flow(x, context)
    assert counter.calls["pixel_unshuffle"] == 3, "of 2 twice, of 4, and of 2"
    h, total = x, torch.zeros(len(x), dtype=x.dtype)
    for step in model.flow.steps:
        h, change = step(h, context)
        total += change
    torch.testing.assert_close((z, logdet), (h, total))
