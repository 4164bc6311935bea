"""Checkpoints of format 1, made by flowdiff before the restructuring, and the samples that it drew from them."""

from pathlib import Path

import numpy as np
import pytest
import torch

import flowdiff
from flowdiff.model import checkpoint, format_1
from flowdiff.model.vocabulary import vocabulary

FOLDER = Path(__file__).parent / "format_1"
DRAWN = np.load(FOLDER / "samples.npz")
#: One machine draws the same to the bit; another one's matrix products may differ in the last digits.
TOLERANCE = 1e-4


@pytest.mark.parametrize("name", ["score_flow.ckpt", "unet.ckpt", "export"])
def test_samples_are_what_they_were(name: str) -> None:
    drawn = flowdiff.load(FOLDER / name).sample(4, sampler="heun", num_steps=4, seed=0, quiet=True)
    np.testing.assert_allclose(drawn, DRAWN[name.partition(".")[0]], atol=TOLERANCE)


def test_samples_by_inversion_and_with_guidance_are_what_they_were() -> None:
    model = flowdiff.load(FOLDER / "score_flow.ckpt")
    inverted = model.sample(4, sampler="inversion", num_steps=1, seed=0, quiet=True)
    guided = model.sample(4, sampler="ancestral", num_steps=4, guidance_scale=2.0, seed=3, quiet=True)
    np.testing.assert_allclose(inverted, DRAWN["inverted"], atol=TOLERANCE)
    np.testing.assert_allclose(guided, DRAWN["ancestral"], atol=TOLERANCE)


def test_an_exported_pipeline_draws_what_it_drew() -> None:
    diffusers = pytest.importorskip("diffusers")
    pipe = diffusers.DiffusionPipeline.from_pretrained(FOLDER / "pipeline", trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(0)
    images = pipe(class_labels=[0, 1], num_inference_steps=4, generator=noise, output_type="pt").images
    np.testing.assert_allclose(images, DRAWN["pipeline"], atol=TOLERANCE)


def test_an_autoencoder_is_read_with_the_names_of_today() -> None:
    content = checkpoint.read(FOLDER / "autoencoder.ckpt")
    assert content["flowdiff"]["format"] == 2
    assert content["flowdiff"]["config"]["autoencoder"]["_target_"] == "flowdiff.training.Autoencoder"


def test_every_old_name_has_one_of_today_that_conf_names() -> None:
    known = {target for targets in vocabulary().targets.values() for target in targets}
    assert set(format_1.NAMES.values()) <= known
    assert not set(format_1.NAMES) & known
