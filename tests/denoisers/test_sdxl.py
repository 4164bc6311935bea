"""The frozen SDXL: its D is diffusers' own, its prompts are the pipeline's, what is no SDXL is refused in a line."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from flowdiff.denoisers.sdxl import SDXL
from flowdiff.errors import FlowdiffError
from flowdiff.model.checkpoint import load
from tests.helpers.command_lines import BARE, Compose
from tests.helpers.ready_made import changed
from tests.helpers.runs import train
from tests.helpers.sdxl import tiny_sdxl
from tests.helpers.trained import checkpoint, edited

SHAPE = (4, 8, 8)


@pytest.mark.parametrize(("prediction_type", "karras"), [("epsilon", False), ("v_prediction", True)])
def test_d_is_the_euler_steps_own(prediction_type: str, karras: bool) -> None:
    """With Karras levels t(sigma) lies between the steps of training."""
    folder = tiny_sdxl(4, prediction_type, karras=karras)
    model = SDXL(SHAPE, 2, str(folder), class_names=["cat", "dog"])
    theirs = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    text, _, pooled, _ = theirs.encode_prompt(["a photo of a cat", "a photo of a dog"], device="cpu")
    sizes = torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]] * 2)
    added = {"text_embeds": pooled, "time_ids": sizes}
    scheduler = theirs.scheduler
    scheduler.set_timesteps(7)
    generator = torch.Generator().manual_seed(0)
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        x = torch.randn(2, *SHAPE, generator=generator) * (sigma**2 + 1).sqrt()
        with torch.no_grad():
            out = theirs.unet(scheduler.scale_model_input(x, t), t, text, added_cond_kwargs=added).sample
        expected = scheduler.step(out, t, x).pred_original_sample
        assert (out.std() * sigma if prediction_type == "epsilon" else out.std()) > 1e-3
        torch.testing.assert_close(model.denoise(x, sigma, torch.tensor([0, 1])), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.denoise_text(x, sigma, text, pooled, sizes), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("zeros", [True, False])
def test_prompts_are_embedded_as_the_pipeline_does(zeros: bool) -> None:
    folder = tiny_sdxl(4, zeros=zeros)
    model = SDXL(SHAPE, 2, str(folder), prompts=["one cat", "the dog 7"])
    theirs = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    text, none, pooled, pooled_none = theirs.encode_prompt(["one cat", "the dog 7"], device="cpu")
    torch.testing.assert_close(model.prompt_embeds, torch.cat([text, none[:1]]))
    torch.testing.assert_close(model.pooled_prompt_embeds, torch.cat([pooled, pooled_none[:1]]))
    assert (model.prompt_embeds[2] == 0).all() == zeros
    assert not torch.allclose(text[0], text[1])
    plain = SDXL(SHAPE, 2, str(folder), prompt="one {}", class_names=["cat", "dog"])
    torch.testing.assert_close(plain.prompt_embeds[0], model.prompt_embeds[0])
    unconditional = SDXL(SHAPE, 0, str(folder))
    torch.testing.assert_close(unconditional.prompt_embeds, none[:1])


def test_sigma_beyond_the_steps_of_training_is_held_to_them() -> None:
    model = SDXL(SHAPE, 0, str(tiny_sdxl(4)))
    sigmas = model.log_sigmas.exp()
    middle = (model.log_sigmas[500:502].mean()).exp()
    t = model.timestep(
        torch.stack([torch.tensor(1e-4), sigmas[0], sigmas[500], middle, sigmas[-1], torch.tensor(80.0)])
    )
    torch.testing.assert_close(t, torch.tensor([0.0, 0.0, 500.0, 500.5, 999.0, 999.0]), rtol=0, atol=1e-3)


def test_frozen_in_any_dtype() -> None:
    model = SDXL(SHAPE, 2, str(tiny_sdxl(4)))
    half = SDXL(SHAPE, 2, str(tiny_sdxl(4)), dtype="bfloat16")
    x, labels = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1])
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16} and half(x, 1.0, labels).dtype == torch.float32
    torch.testing.assert_close(half(x, 1.0, labels), model(x, 1.0, labels), rtol=0.05, atol=0.05)
    told = SDXL(SHAPE, 2, str(tiny_sdxl(4)), image_size=[1024, 512])
    assert told.time_ids.tolist() == [1024, 512, 0, 0, 1024, 512]
    assert not torch.equal(told(x, 1.0, labels), model(x, 1.0, labels))


def without(part: str) -> Callable[[Path], object]:
    return lambda folder: shutil.rmtree(folder / part)


def edm(folder: Path) -> None:
    (folder / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "EDMEulerScheduler", "sigma_min": 1}')


def pickled(part: str, name: str) -> Callable[[Path], object]:
    """Its weights as a .bin, which would run what stands in it."""

    def change(folder: Path) -> None:
        (folder / part / f"{name}.safetensors").unlink()
        torch.save({"weight": torch.zeros(1)}, folder / part / f"{name.replace('model.', '')}.bin")
        torch.save({"weight": torch.zeros(1)}, folder / part / "pytorch_model.bin")

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("unet"), "its unet can't be read"),
        (without("text_encoder_2"), "its text_encoder_2 can't be read"),
        (without("scheduler"), "its scheduler can't be read"),
        (pickled("unet", "diffusion_pytorch_model"), "its unet can't be read .*only safetensors"),
        (pickled("text_encoder", "model"), "its text_encoder can't be read .*only safetensors"),
        (changed("scheduler", prediction_type="sample"), "prediction_type sample is none of"),
        (edm, "EDMEulerScheduler has no discrete noise levels"),
        (changed("unet", addition_embed_type=None), "not SDXL's"),
        (changed("unet", in_channels=9), "9 channels"),
    ],
)
def test_folders_that_are_refused(change: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_sdxl(4), tmp_path / "sdxl")
    change(folder)
    with pytest.raises(FlowdiffError, match=message) as caught:
        SDXL(SHAPE, 2, str(folder))
    assert str(caught.value).startswith(f"denoiser.path={folder}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"path": None}, "denoiser.path=null: "),
        ({"path": "./nowhere"}, "denoiser.path=./nowhere: there is no such folder"),
        ({"prompts": ["one"]}, "denoiser.prompts=.*must be 2"),
        ({"dtype": "int8"}, "dtype=int8: must be one of float32"),
        ({"image_size": [64]}, "image_size="),
    ],
)
def test_mistakes(values: dict[str, Any], message: str) -> None:
    with pytest.raises(FlowdiffError, match=message):
        SDXL(SHAPE, 2, **{"path": str(tiny_sdxl(4)), **values})


def test_it_is_not_trained_and_no_checkpoint_holds_it(config: Compose, tmp_path: Path) -> None:
    with pytest.raises(FlowdiffError, match="frozen, there is nothing to train") as caught:
        train(config("denoiser=sdxl", *BARE))  # said before its path is looked at
    assert "\n" not in str(caught.value)
    evil = {"_target_": "flowdiff.denoisers.SDXL", "path": "evil/name"}
    edited(checkpoint("digits"), tmp_path / "evil.ckpt", lambda c: c["flowdiff"]["config"]["denoiser"].update(evil))
    with pytest.raises(FlowdiffError, match="frozen"):
        load(tmp_path / "evil.ckpt")
