"""Latents of SDXL: 4×64×64 has 16,384 coordinates, where maps between all of them don't fit into memory."""

import pytest
import torch
from hydra.errors import InstantiationException

from flowdiff.data.statistics import DataStatistics
from flowdiff.flows.linear import PLULinear
from flowdiff.objectives.losses import Likelihood
from tests.helpers.models import make

SHAPE = (4, 64, 64)


@pytest.mark.parametrize(("flow", "what"), [("linear", "2.1 GB of weights"), ("spectral", "eigenvectors")])
def test_what_does_not_fit_says_what_does(flow: str, what: str) -> None:
    with pytest.raises(InstantiationException) as caught:
        make(SHAPE, 0, flow=flow, precondition="standardized")
    line = str(caught.value.__cause__)
    assert line.startswith(f"flow={flow}: ") and what in line and "16384" in line
    assert "choose flow=conv, glow or transformer" in line


def test_a_map_that_fits_is_not_refused() -> None:
    with torch.device("meta"):
        PLULinear(3072)  # CIFAR-10's, the guide's


@pytest.mark.parametrize("flow", ["conv", "glow", "transformer"])
@pytest.mark.parametrize("precondition", ["standardized", "scalar"])
def test_what_is_named_takes_a_step(flow: str, precondition: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(4, *SHAPE, generator=generator) * 0.9
    model = make(SHAPE, 0, flow=flow, precondition=precondition)
    model.fit(DataStatistics.from_data(x0, None, 0))
    loss = Likelihood()(model, x0, None, torch.full((4,), 0.3), torch.randn(x0.shape, generator=generator))["loss"]
    loss.mean().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in grads) and any(g.abs().max() > 0 for g in grads)
    assert sum(t.numel() for t in model.buffers()) < 10 * x0[0].numel()  # nothing of d² numbers
