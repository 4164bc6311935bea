"""A UNet2DModel from a folder: its D is diffusers' own, and what is none, or not for these images, is a line."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from flowdiff.denoisers.unet_pretrained import PretrainedUNet2D
from flowdiff.errors import FlowdiffError
from tests.helpers.ready_made import changed, tiny_unet2d

SHAPE = (1, 8, 8)


def assert_theirs(model: PretrainedUNet2D, unet: UNet2DModel, scheduler: DDPMScheduler, classes: Any = None) -> None:
    """D is pred_original_sample of a step of their scheduler, at x0 + σ_t ε for their x_t."""
    scheduler.set_timesteps(scheduler.config.num_train_timesteps)
    generator = torch.Generator().manual_seed(0)
    last = scheduler.config.num_train_timesteps - 1
    for t in (0, 1, last // 3, last - 1, last):
        alpha_bar = scheduler.alphas_cumprod[t]
        x_t, sigma = torch.randn(2, *SHAPE, generator=generator), ((1 - alpha_bar) / alpha_bar).sqrt()
        with torch.no_grad():
            out = unet(x_t, t, classes).sample
        expected = scheduler.step(out, t, x_t).pred_original_sample
        assert out.std() > 1e-2
        x = x_t * (sigma**2 + 1).sqrt()
        torch.testing.assert_close(model.denoise(x, sigma, classes), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_d_is_the_ddpm_steps_own(prediction_type: str) -> None:
    folder = tiny_unet2d(prediction_type=prediction_type)
    theirs = DDPMPipeline.from_pretrained(folder)
    model = PretrainedUNet2D(SHAPE, 10, str(folder))
    assert model.num_classes == 0 and not model.training and not any(p.requires_grad for p in model.parameters())
    assert_theirs(model, theirs.unet, theirs.scheduler)


@pytest.mark.parametrize("embeds", [3, 4])
def test_it_is_told_the_class(embeds: int) -> None:
    folder = tiny_unet2d(SHAPE, embeds)
    theirs = DDPMPipeline.from_pretrained(folder)
    model, labels = PretrainedUNet2D(SHAPE, 3, str(folder)), torch.tensor([2, 0])
    assert_theirs(model, theirs.unet, theirs.scheduler, labels)
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    if embeds == 3:
        with pytest.raises(FlowdiffError, match="without a null class"):
            model.denoise(x, 1.0)
        return
    assert not torch.allclose(model.denoise(x, 1.0), model.denoise(x, 1.0, labels))


def test_a_unet_alone_is_ddpms(tmp_path: Path) -> None:
    unet = DDPMPipeline.from_pretrained(tiny_unet2d()).unet
    unet.save_pretrained(tmp_path)
    assert_theirs(PretrainedUNet2D(SHAPE, 10, str(tmp_path)), unet, DDPMScheduler(clip_sample=False))


def test_unet_and_scheduler_in_one_folder(tmp_path: Path) -> None:
    """As the oldest ones on the hub."""
    theirs = DDPMPipeline.from_pretrained(tiny_unet2d(prediction_type="v_prediction"))
    theirs.unet.save_pretrained(tmp_path)
    theirs.scheduler.save_pretrained(tmp_path)
    assert_theirs(PretrainedUNet2D(SHAPE, 10, str(tmp_path)), theirs.unet, theirs.scheduler)


def pickled(folder: Path) -> None:
    """Its weights as a .bin, which would run what stands in it."""
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"weight": torch.zeros(1)}, folder / "unet" / "diffusion_pytorch_model.bin")


def cut(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: shutil.rmtree(folder / "unet"), "its unet can't be read"),
        (lambda folder: (folder / "unet" / "config.json").write_text("{"), "its unet can't be read"),
        (pickled, "its unet can't be read .*only safetensors"),
        (cut, "its unet can't be read"),
        (changed("unet", block_out_channels=[8, 8]), "its unet can't be read"),
        (changed("unet", _class_name="UNet2DConditionModel"), "is a UNet2DConditionModel, not a UNet2DModel"),
        (changed("unet", sample_size=[32, 16]), "its unet takes 1×32×16 and gives 1 channels, the data are 1×8×8"),
        (changed("unet", sample_size=32), "its unet takes 1×32×32"),
        (changed("unet", in_channels=3), "its unet takes 3×8×8"),
        (changed("unet", out_channels=2), "and gives 2 channels"),
        (changed("unet", num_class_embeds=7), "has 7 classes, the data have 10"),
        (changed("unet", time_embedding_type="fourier"), "takes no numbers of steps"),
        (changed("scheduler", prediction_type="sample"), "prediction_type sample is none of"),
        (lambda folder: (folder / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "Edm"}'),
         "its scheduler Edm has no discrete noise levels"),
    ],
)  # fmt: skip
def test_folders_that_are_refused(change: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_unet2d(), tmp_path / "unet2d")
    change(folder)
    with pytest.raises(FlowdiffError, match=message) as caught:
        PretrainedUNet2D(SHAPE, 10, str(folder))
    assert str(caught.value).startswith(f"denoiser.path={folder}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("path", [None, "./nowhere", "someone/something", __file__])
def test_no_folder(path: str | None) -> None:
    """A name on the hub is none: nothing is fetched."""
    with pytest.raises(FlowdiffError, match="^denoiser.path=.*(must be the|there is no such) folder"):
        PretrainedUNet2D(SHAPE, 10, path)


def test_points_are_no_images() -> None:
    with pytest.raises(FlowdiffError, match="its unet takes 1×8×8 .*the data are 2"):
        PretrainedUNet2D((2,), 0, str(tiny_unet2d()))


def test_without_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_unet2d()
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(FlowdiffError, match="needs diffusers and transformers: pip install"):
        PretrainedUNet2D(SHAPE, 10, str(folder))
