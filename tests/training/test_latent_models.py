"""An autoencoder and a model of its latents from end to end: trained, sampled, evaluated, moved."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from sklearn.datasets import load_sample_images

import flowdiff
from flowdiff.commands.evaluate import evaluate
from flowdiff.commands.export import export
from flowdiff.errors import FlowdiffError
from tests.helpers.autoencoders import saved
from tests.helpers.command_lines import TINY, Command
from tests.helpers.configs import composed
from tests.helpers.runs import train
from tests.helpers.sdxl import tiny_sdxl
from tests.helpers.trained import edited

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("latents")]

FEW = [
    "dataset=digits",
    "warmup_steps=2",
    "trainer.log_every_n_steps=2",
    "logger=csv",
    "callbacks.progress.interval=0",
]
SMALL = ["autoencoder.block_out_channels=[8,16]", "autoencoder.norm_num_groups=4", "autoencoder.latent_channels=2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`autoencoder` and `flow`: an autoencoder of digits after 150 steps, and a model of its latents after 20."""
    folder = tmp_path_factory.mktemp("latents")
    steps = ["trainer.max_steps=150", "trainer.val_check_interval=75"]
    train(composed("config", "experiment=autoencoder_mnist", *FEW, *SMALL, *steps, f"run_dir={folder}/autoencoder"))
    words = [
        "experiment=mnist_latent",
        *FEW,
        *(word for word in TINY if word.startswith(("flow", "num_steps", "conditioning", "dataset"))),
        "callbacks.sample_grid.columns=2",
        "metrics=[denoising,fd,recognised,bits_per_dim]",
        "trainer.max_steps=20",
        f"first_stage.path={folder}/autoencoder/autoencoder",
        f"first_stage.cache={folder}/cache",
        f"run_dir={folder}/flow",
    ]
    train(composed("config", *words))
    return folder


def test_the_autoencoder_learns_and_is_diffusers_own(runs: Path) -> None:
    from diffusers import AutoencoderKL

    metrics = json.loads((runs / "autoencoder" / "metrics.json").read_text())
    pixels = flowdiff.data.Digits()  # type: ignore[attr-defined]
    x = pixels.to_centres(pixels.images("test")[0])
    assert metrics["reconstruction_rmse"]["value"] < 0.75 * x.std().item()  # the mean image would have 1
    assert metrics["kl"]["value"] > 1
    network = AutoencoderKL.from_pretrained(runs / "autoencoder" / "autoencoder")
    with torch.no_grad():
        posterior = network.encode(x).latent_dist
        y = network.decode(posterior.mean).sample
    assert (x - y).square().mean().sqrt().item() == pytest.approx(metrics["reconstruction_rmse"]["value"], rel=1e-4)
    scaled = (posterior.sample() - network.config.shift_factor) * network.config.scaling_factor
    assert scaled.mean().abs() < 0.1 and scaled.std() == pytest.approx(1, abs=0.1)
    for picture in (
        *(runs / "autoencoder" / "reconstructions").glob("*.png"),
        runs / "autoencoder/reconstructions.png",
    ):
        assert Image.open(picture).size[0] > 100


def test_an_autoencoder_resumes(runs: Path) -> None:
    last = runs / "autoencoder" / "checkpoints" / "last.ckpt"
    words = [*FEW, *SMALL, "trainer.max_steps=152", f"ckpt_path={last}", f"run_dir={runs}/longer"]
    result = train(composed("config", "experiment=autoencoder_mnist", *words))
    assert result["step"] == 152


def test_a_model_of_latents_is_measured_on_decoded_images(runs: Path) -> None:
    metrics = json.loads((runs / "flow" / "metrics.json").read_text())
    assert set(metrics) >= {"denoising_ratio/0.2", "fd_mlp_digits", "fd_mlp_digits/real", "recognised"}
    assert "bits_per_dim" not in metrics  # latents have no levels
    assert metrics["fd_mlp_digits/real"]["value"] == pytest.approx(0.861, abs=0.01)  # of the images, not of latents
    width, height = Image.open(runs / "flow" / "samples.png").size
    assert width > 8 * 10 and height > 8 * 10
    assert list((runs / "flow" / "samples").glob("*.png")) and list((runs / "flow" / "denoising").glob("*.png"))


def test_samples_are_decoded(runs: Path, command: Command, tmp_path: Path) -> None:
    ckpt = runs / "flow" / "checkpoints" / "last.ckpt"
    result = command("sample", f"ckpt_path={ckpt}", "num_samples=3", "class_label=4", f"output_dir={tmp_path}/out")
    assert result.returncode == 0, result.stderr
    images = np.load(tmp_path / "out" / "samples.npz")["images"]
    assert images.shape == (3, 8, 8, 1)
    model = flowdiff.load(ckpt)
    z = model.sample(3, labels=4, quiet=True)
    assert z.shape == (3, 2, 4, 4) and z.abs().max() > 1  # latents are not held to [-1, 1]
    assert np.array_equal(model.to_uint8(z).permute(0, 2, 3, 1).numpy(), images)
    assert model.decode(z).shape == (3, 1, 8, 8)
    assert model.encode(model.decode(z)).shape == z.shape


def test_a_moved_autoencoder_is_named_on_the_command_line(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "autoencoder" / "autoencoder", tmp_path / "here")
    ckpt = tmp_path / "strange.ckpt"
    places: dict[str, Any] = {"path": "/no/such/folder"}
    edited(
        runs / "flow" / "checkpoints" / "last.ckpt",
        ckpt,
        lambda content: content["flowdiff"]["config"]["first_stage"].update(places),
    )
    words = [f"ckpt_path={ckpt}", "metrics=[fd]", "num_steps=2", f"output_dir={tmp_path}/out"]
    with pytest.raises(FlowdiffError, match=r"first_stage\.path=null: .*/no/such/folder is only what the checkpoint"):
        evaluate(composed("evaluate", *words))
    found = evaluate(composed("evaluate", *words, f"first_stage.path={tmp_path}/here"))
    assert found["metrics"]["fd_mlp_digits"]["n"] == 360


def test_sdxl_is_measured_beside_it_on_the_same_latents(runs: Path, tmp_path: Path) -> None:
    ckpt = runs / "flow" / "checkpoints" / "last.ckpt"
    words = [f"ckpt_path={ckpt}", f"output_dir={tmp_path}", "num_steps=2", "metrics=[denoising,fd,cost]"]
    words += ["metrics.denoising.sigmas=[0.5]", "metrics.cost.num_samples=4", "metrics.cost.repeats=1"]
    result = evaluate(composed("evaluate", *words, "denoiser=sdxl", f"denoiser.path={tiny_sdxl(channels=2)}"))
    ours, theirs = result["metrics"], result["against"]
    assert set(ours) == set(theirs) >= {"denoising_ratio/0.5", "fd_mlp_digits", "parameters", "seconds_per_100"}
    assert ours["denoising_ratio/0.5"]["rmse_wiener"] == theirs["denoising_ratio/0.5"]["rmse_wiener"]
    assert ours["fd_mlp_digits"]["value"] != theirs["fd_mlp_digits"]["value"]
    for folder in (tmp_path, tmp_path / "sdxl"):
        assert Image.open(folder / "samples.png").size[0] > 8 * 10  # decoded


def test_another_autoencoder_is_refused(runs: Path, tmp_path: Path) -> None:
    other = saved(tmp_path / "other")
    model = flowdiff.load(runs / "flow" / "checkpoints" / "last.ckpt", first_stage=str(other))
    z = model.sample(1, quiet=True)  # needs none
    with pytest.raises(FlowdiffError, match="not the autoencoder that this model was trained with"):
        model.to_uint8(z)


def test_an_autoencoder_is_no_denoiser(runs: Path) -> None:
    with pytest.raises(FlowdiffError, match=r"holds an autoencoder.*first_stage\.path=RUN/autoencoder"):
        flowdiff.load(runs / "autoencoder" / "checkpoints" / "last.ckpt")


def test_latents_have_no_pixels_to_fill_in(runs: Path) -> None:
    model = flowdiff.load(runs / "flow" / "checkpoints" / "last.ckpt")
    with pytest.raises(FlowdiffError, match="latents have no pixels"):
        model.inpaint(torch.zeros(1, 2, 4, 4), "left")


def test_a_model_of_latents_is_exported_with_its_autoencoder(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    ckpt = runs / "flow" / "checkpoints" / "last.ckpt"
    for format in ("safetensors", "diffusers"):
        export(composed("export", f"ckpt_path={ckpt}", f"format={format}", f"output_dir={tmp_path}/{format}"))
    model, read = flowdiff.load(ckpt), flowdiff.load(tmp_path / "safetensors")
    z = model.sample(2, labels=[1, 7], sampler="euler", num_steps=3, quiet=True)
    assert torch.equal(read.sample(2, labels=[1, 7], sampler="euler", num_steps=3, quiet=True), z)
    assert torch.equal(read.to_uint8(z), model.to_uint8(z))
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "diffusers", trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))
    drawn = {
        kind: pipe(class_labels=[1, 7], num_inference_steps=3, latents=noise, output_type=kind).images
        for kind in ("latent", "pt", "pil")
    }
    torch.testing.assert_close(drawn["pt"], (model.decode(drawn["latent"]) / 2 + 0.5).clamp(0, 1))
    pixels = model.to_uint8(drawn["latent"])[:, 0].numpy()
    assert all(np.array_equal(np.asarray(image), own) for image, own in zip(drawn["pil"], pixels, strict=True))
    assert drawn["latent"].abs().max() > 1


def test_sdxls_latents(tmp_path: Path) -> None:
    """experiment=sdxl_latent on photographs of 512×512, with an autoencoder of SDXL's shape and random weights."""
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    (tmp_path / "images").mkdir()
    for i in range(10):
        crop = photographs[i % 2].crop((20 * i, 0, 20 * i + 256, 256)).resize((512, 512))
        crop.save(tmp_path / "images" / f"{i}.png")
    saved(
        tmp_path / "vae",
        in_channels=3,
        out_channels=3,
        block_out_channels=(4, 8, 8, 8),
        latent_channels=4,
        sample_size=512,
        scaling_factor=0.13025,
        mid_block_add_attention=False,
    )
    words = [
        "experiment=sdxl_latent",
        f"dataset.root={tmp_path}/images",
        "dataset.batch_size=4",
        f"first_stage.path={tmp_path}/vae",
        f"first_stage.cache={tmp_path}/cache",
        "flow.n_flows=2",
        "flow.width=8",
        "num_steps=2",
        "trainer.max_steps=1",
        "metrics=[denoising]",
        "callbacks.sample_grid=null",
        "callbacks.denoising_grid=null",
        "logger=none",
        f"run_dir={tmp_path}/run",
    ]
    result = train(composed("config", *words))
    assert np.isfinite([m["value"] for m in result["metrics"].values()]).all()
    model = flowdiff.load(result["last"])
    assert model.shape == (4, 64, 64)
    picture = np.asarray(Image.open(tmp_path / "run" / "samples.png"))
    assert picture.shape[0] == picture.shape[1] > 4 * 512 and picture.std() > 0  # 16 of them
    assert model.to_uint8(model.sample(1, labels=None, quiet=True)).shape == (1, 3, 512, 512)
