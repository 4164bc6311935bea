"""A flow fitted by maximum likelihood to a Gaussian reaches its entropy, and learns its score and samples."""

import math

import pytest
import torch
from analytic import GaussianDenoiser
from configs import build
from models import make

from flowdiff.denoisers import ScoreFlow

SIGMA = 0.3
STEPS = 200


@pytest.mark.parametrize("flow", ["linear", "coupling", "residual"])
def test_a_gaussian_reaches_its_entropy(flow: str) -> None:
    torch.manual_seed(0)
    mean, factor = torch.tensor([0.5, -0.2]), torch.tensor([[0.8, 0.0], [-0.6, 0.25]])
    truth = GaussianDenoiser(mean, factor @ factor.T)
    covariance = factor @ factor.T + SIGMA**2 * torch.eye(2)
    entropy = 0.5 * torch.logdet(2 * math.pi * math.e * covariance).item()
    model = make((2,), 0, flow=flow, precondition="scalar", activation="tanh")
    assert isinstance(model, ScoreFlow)
    loss = build("loss", "likelihood")
    optimiser = torch.optim.Adam(model.parameters(), lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    held_out = mean + torch.randn(8000, 2) @ factor.T
    eps, sigma = torch.randn(8000, 2), torch.full((8000,), SIGMA)

    def nll() -> float:
        with torch.no_grad():
            return -model.log_prob(held_out + SIGMA * eps, sigma).mean().item()

    assert nll() > entropy + 0.2
    for _ in range(STEPS):
        x0 = mean + torch.randn(256, 2) @ factor.T
        optimiser.zero_grad()
        loss(model, x0, None, sigma[:256], torch.randn(256, 2))["loss"].mean().backward()
        optimiser.step()
        schedule.step()
    exact = -truth.log_prob(held_out + SIGMA * eps, sigma).mean().item()
    assert exact == pytest.approx(entropy, abs=0.02)
    assert nll() == pytest.approx(exact, abs=0.01)
    assert nll() > exact - 1e-3, "nothing beats the entropy: the density would not be normalised"
    x = (held_out + SIGMA * eps)[:2000]
    error = (model.denoise(x, SIGMA) - truth.denoise(x, SIGMA)).square().mean().sqrt()
    assert error < 0.05 * truth.denoise(x, SIGMA).std()
    samples = model.inverse(torch.randn(8000, 2), SIGMA)
    torch.testing.assert_close(samples.T.cov(), covariance, rtol=0, atol=0.06)
