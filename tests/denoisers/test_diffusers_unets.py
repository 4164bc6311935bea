"""diffusers' U-Nets as denoisers: SDXL's size, what reaches the network, dropout, autocast, and that they train."""

import re
import sys
from typing import Any

import pytest
import torch

from flowdiff.denoisers.base import Perturbation
from flowdiff.denoisers.diffusers_unets import DiffusersDenoiser, sdxl_unet
from flowdiff.errors import ConfigError, how_to_install
from flowdiff.model.checkpoint import load
from tests.helpers.command_lines import BARE, Compose
from tests.helpers.models import CLASSES, make, points, randomise, statistics
from tests.helpers.runs import train

SHAPE = (1, 7, 7)
NAMES = ("unet_diffusers", "unet_diffusers_sdxl")
either = pytest.mark.parametrize("name", NAMES)
#: As small as they get.
SMALLEST = {
    "unet_diffusers": ("denoiser.width=8", "denoiser.multipliers=[1,1]", "denoiser.layers=1"),
    "unet_diffusers_sdxl": ("denoiser.width_factor=0.03", "denoiser.transformer_layers=[1,1,1]"),
}


def test_sdxls_size() -> None:
    """The published number of parameters, 2,567,463,684; a sixteenth of them or so at a quarter of the width."""
    with torch.device("meta"):
        assert sum(p.numel() for p in sdxl_unet(4).parameters()) == 2_567_463_684
        quarter = sdxl_unet(4, 8)
    assert sum(p.numel() for p in quarter.parameters()) == pytest.approx(2_567_463_684 / 16, rel=0.01)
    assert quarter.config.block_out_channels == (80, 160, 320)


def random(name: str) -> tuple[DiffusersDenoiser, torch.Tensor, torch.Tensor, torch.Tensor]:
    model = make(SHAPE, denoiser=name)
    assert isinstance(model, DiffusersDenoiser)
    model.fit(statistics(SHAPE))
    randomise(model)
    x, sigma, labels = (t.float() if t is not None and t.is_floating_point() else t for t in points(shape=SHAPE))
    assert labels is not None
    return model, x, sigma, labels


@either
def test_c_noise_and_every_pixel_reach_the_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, sigma, labels = random(name)
    seen: list[Any] = []
    forward = model.unet.forward
    monkeypatch.setattr(model.unet, "forward", lambda *args, **kwargs: seen.append(args) or forward(*args, **kwargs))
    before = model(x, sigma, labels)
    torch.testing.assert_close(seen[0][1], sigma.log() / 4)
    for corner in ((0, 0), (6, 6)):
        moved = x.clone()
        moved[:, :, corner[0], corner[1]] += 1
        assert (model(moved, 1.0, labels) - model(x, 1.0, labels)).abs().flatten(1).amax(1).min() > 0
    assert before.isfinite().all()


@either
def test_dropout_only_in_a_training_step(name: str) -> None:
    model, x, sigma, labels = random(name)
    model.train()
    before, step = model(x, sigma, labels), Perturbation(dropout=0.5)
    assert not torch.equal(model(x, sigma, labels, step), model(x, sigma, labels, step))
    assert torch.equal(model(x, sigma, labels), before)


@either
def test_precision_under_autocast(name: str) -> None:
    model, x, sigma, labels = random(name)
    expected = model(x, sigma, labels)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(x, sigma, labels)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, rtol=0.05, atol=0.05)
    fresh = make(SHAPE, denoiser=name)
    with torch.autocast("cpu", torch.bfloat16):
        start = fresh(x, sigma, labels)
    torch.testing.assert_close(start, fresh(x, sigma, labels), rtol=1e-6, atol=1e-6)


@either
@pytest.mark.slow
def test_it_trains_and_comes_back_from_its_checkpoint(name: str, config: Compose) -> None:
    """The experiment's own loss and sampler need a density; the ones that every network has take their place."""
    words = (f"denoiser={name}", *SMALLEST[name], "experiment=digits", "trainer.max_steps=2", *BARE)
    words += ("dataset.batch_size=8", "trainer.limit_val_batches=1")
    result = train(config(*words), list(words))
    model, facts = load(result["checkpoint"])
    assert isinstance(model, DiffusersDenoiser) and model.num_classes == 10
    assert facts.config["loss"]["_target_"].endswith(".Denoising")
    assert sum(p.abs().sum() for p in model.unet.conv_out.parameters()) > 0  # zero at its start
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert model(x, 1.0, torch.tensor([0, 9])).isfinite().all()


@either
def test_without_diffusers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(Exception, match=re.escape(how_to_install("latent"))) as caught:
        make(SHAPE, CLASSES, denoiser=name)
    assert isinstance(caught.value.__cause__, ConfigError)
