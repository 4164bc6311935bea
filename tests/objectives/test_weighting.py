"""Weights over σ that are learned: their formula, what they learn, and where they are kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowdiff.errors import ConfigError
from flowdiff.model import checkpoint
from flowdiff.objectives import AnnealedMixture, Denoising, LearnedWeighting, Likelihood, Loss, Mixture
from tests.helpers.command_lines import BARE, Compose
from tests.helpers.models import make, points, random_flow
from tests.helpers.runs import train


def weighting() -> LearnedWeighting:
    """One that has learned something."""
    found = LearnedWeighting(8).double()
    nn.init.normal_(found.last.weight)  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize(
    ("kind", "share"), [(Denoising, 0.0), (Mixture, 1.0), (AnnealedMixture, 1.0)], ids=lambda value: str(value)
)
def test_denoising_errors_alone_are_weighed(kind: type[Any], share: float) -> None:
    model, (x0, sigma, labels), u = random_flow(), points(), weighting()
    given = (model, x0, labels, sigma, torch.randn_like(x0))
    plain = kind()(*given)
    weighed = kind(weighting=u)(*given)
    nll = Likelihood()(*given)["loss"]
    expected = share * nll + plain["denoising"] / u.log_error(sigma).exp() + u.log_error(sigma)
    torch.testing.assert_close(weighed["loss"], expected)
    assert torch.equal(weighed["denoising"], plain["denoising"])
    weighed["loss"].mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in u.parameters())
    u.eval()
    assert torch.equal(kind(weighting=u)(*given)["loss"], plain["loss"]), "a validation is of the errors themselves"
    assert torch.equal(kind(weighting=LearnedWeighting(8).double())(*given)["loss"], plain["loss"]), "0 at the start"


def test_a_unet_has_them() -> None:
    model, (x0, sigma, labels), u = make((1, 8, 8), denoiser="unet"), points(shape=(1, 8, 8)), weighting().float()
    given = (model, x0.float(), labels, sigma.float(), torch.randn_like(x0).float())
    log_error = u.log_error(sigma.float())
    expected = Denoising()(*given)["denoising"] / log_error.exp() + log_error
    torch.testing.assert_close(Denoising(weighting=u)(*given)["loss"], expected)


def test_u_becomes_the_logarithm_of_the_mean_error() -> None:
    torch.manual_seed(0)
    u = LearnedWeighting(32)
    optimizer = torch.optim.Adam(u.parameters(), lr=1e-2)

    def mean(sigma: Tensor) -> Tensor:
        return 0.3 + 3 * torch.sigmoid(2 * sigma.log())

    for _ in range(600):
        sigma = torch.exp(torch.randn(256) * 1.5)
        error = mean(sigma) * -torch.rand(256).log()  # exponential, of that mean
        optimizer.zero_grad()
        u(error, sigma).mean().backward()
        optimizer.step()
    sigma = torch.tensor([0.1, 0.5, 1.0, 2.0, 10.0])
    assert (u.log_error(sigma) - mean(sigma).log()).abs().max() < 0.15
    assert mean(sigma).log().max() - mean(sigma).log().min() > 1


@pytest.mark.slow
def test_a_run_keeps_them_and_its_model_has_none(config: Compose, tmp_path: Path) -> None:
    words = (*BARE, "weighting=learned", "weighting.width=8", "trainer.max_steps=3", "compile=false")
    train(config(*words))
    file = tmp_path / "run" / "checkpoints" / "last.ckpt"
    state = checkpoint.read(file)["state_dict"]
    names = {name for name in state if not name.startswith(("denoiser.", "augmentation."))}
    assert "weighting.last.weight" in names and all(name.startswith("weighting.") for name in names)
    assert checkpoint.read(file)["current_model_state"]["weighting.last.weight"].abs().sum() > 0, "trained"
    assert not any("weighting" in name for name in checkpoint.read_model(file).state)
    checkpoint.load(file)


def test_a_loss_without_denoising_errors_is_one_line(config: Compose) -> None:
    with pytest.raises(ConfigError, match="^loss.weighting=null: loss=likelihood doesn't take the weighting") as caught:
        train(config(*BARE, "weighting=learned", "loss=likelihood"))
    assert "\n" not in str(caught.value)


def test_a_model_without_a_likelihood_keeps_them(config: Compose, tmp_path: Path) -> None:
    words = ("denoiser=unet", "denoiser.width=8", "denoiser.multipliers=[1]", "weighting=learned")
    train(config(*BARE, *words, "trainer.max_steps=1", "dataset.batch_size=8", tiny=False))
    assert "weighting.last.weight" in checkpoint.read(tmp_path / "run" / "checkpoints" / "last.ckpt")["state_dict"]


def test_a_loss_has_none_by_itself() -> None:
    assert all(loss.weighting is None for loss in (Loss(), Likelihood(), Denoising(), Mixture(), AnnealedMixture()))
