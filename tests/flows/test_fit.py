"""A flow fitted by maximum likelihood reaches the entropy of what it is fitted to.

A Gaussian, whose score and samples are learned as well; and four modes, which take a spline.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flowdiff.denoisers.score_flow import ScoreFlow
from tests.helpers.analytic import GaussianDenoiser
from tests.helpers.configs import build
from tests.helpers.models import make

SIGMA = 0.3
STEPS = 200


def fit(model: ScoreFlow, draw: Callable[[int], Tensor], sigma: float) -> None:
    """STEPS steps on what `draw(n)` gives, (n, 2)."""
    loss, levels = build("loss", "likelihood"), torch.full((256,), sigma)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for _ in range(STEPS):
        x0 = draw(256)
        optimiser.zero_grad()
        loss(model, x0, None, levels, torch.randn(256, 2))["loss"].mean().backward()
        optimiser.step()
        schedule.step()


def nll(model: ScoreFlow, x: Tensor, sigma: float) -> float:
    with torch.no_grad():
        return -model.log_prob(x, sigma).mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("flow", ["linear", "coupling", "spline", "autoregressive", "residual"])
def test_a_gaussian_reaches_its_entropy(flow: str) -> None:
    torch.manual_seed(0)
    mean, factor = torch.tensor([0.5, -0.2]), torch.tensor([[0.8, 0.0], [-0.6, 0.25]])
    truth = GaussianDenoiser(mean, factor @ factor.T)
    covariance = factor @ factor.T + SIGMA**2 * torch.eye(2)
    entropy = 0.5 * torch.logdet(2 * math.pi * math.e * covariance).item()
    model = make((2,), 0, flow=flow, precondition="scalar", activation="tanh")
    assert isinstance(model, ScoreFlow)
    held_out = mean + torch.randn(8000, 2) @ factor.T
    x = held_out + SIGMA * torch.randn(8000, 2)
    assert nll(model, x, SIGMA) > entropy + 0.2
    fit(model, lambda n: mean + torch.randn(n, 2) @ factor.T, SIGMA)
    exact = -truth.log_prob(x, torch.full((8000,), SIGMA)).mean().item()
    assert exact == pytest.approx(entropy, abs=0.02)
    reached = nll(model, x, SIGMA)
    assert reached == pytest.approx(exact, abs=0.01)
    assert reached > exact - 1e-3, "nothing beats the entropy: the density would not be normalised"
    x = x[:2000]
    error = (model.denoise(x, SIGMA) - truth.denoise(x, SIGMA)).square().mean().sqrt()
    assert error < 0.05 * truth.denoise(x, SIGMA).std()
    samples = model.inverse(torch.randn(8000, 2), SIGMA)
    torch.testing.assert_close(samples.T.cov(), covariance, rtol=0, atol=0.06)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flow", "activation", "found"),
    [
        ("linear", "spline", True),  # a Gaussianization flow
        ("linear", "tanh", False),
        ("spline", "identity", True),
        ("autoregressive_spline", "identity", True),
    ],
)
def test_splines_find_four_modes(flow: str, activation: str, found: bool) -> None:
    """(±0.7, ±0.7) with deviation 0.15."""
    torch.manual_seed(0)

    def draw(n: int) -> Tensor:
        return 0.7 * (2 * torch.randint(0, 2, (n, 2)) - 1) + 0.15 * torch.randn(n, 2)

    model = make((2,), 0, flow=flow, precondition="scalar", activation=activation)
    assert isinstance(model, ScoreFlow)
    fit(model, draw, sigma=0.1)
    x = draw(8000) + 0.1 * torch.randn(8000, 2)
    variance = 0.15**2 + 0.1**2
    modes = torch.stack([-(x - mode).square() / (2 * variance) for mode in (0.7, -0.7)]).logsumexp(0)
    exact = -(modes - 0.5 * math.log(8 * math.pi * variance)).sum(1).mean().item()
    reached = nll(model, x, 0.1)
    assert reached > exact - 0.01, "nothing beats the entropy"
    assert (reached < exact + 0.08) == found and (reached > exact + 1) != found
