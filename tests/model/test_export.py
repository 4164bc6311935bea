"""Exported models: the same numbers as the checkpoint's, read without running anything, as diffusers' users expect."""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import flowdiff
from flowdiff.commands.export import export
from flowdiff.commands.sample import sample
from flowdiff.errors import FlowdiffError, how_to_install
from flowdiff.model.checkpoint import load, read
from flowdiff.model.pipeline import scheduler_of
from flowdiff.samplers.noise import IndexedNoise
from tests.helpers.configs import build, choices, composed, node
from tests.helpers.trained import checkpoint

diffusers = pytest.importorskip("diffusers")
LABELS = [0, 1, 2, 3]


def exported(folder: Path, *words: str, model: str = "digits") -> Path:
    export(composed("export", f"ckpt_path={checkpoint(model)}", f"output_dir={folder}", *words))
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.safetensors and model.json of the digits' checkpoint; don't change them."""
    return exported(tmp_path_factory.mktemp("safetensors"))


# -- safetensors and JSON ---------------------------------------------------------------------------------


def test_an_exported_model_is_the_checkpoints(plain: Path, tmp_path: Path) -> None:
    assert sorted(file.name for file in plain.iterdir()) == ["model.json", "model.safetensors"]
    assert json.loads((plain / "model.json").read_text())["config"]["flow"]["width"] == 16
    raw = exported(tmp_path / "raw", "weights=raw")
    x, labels = torch.randn(4, 1, 8, 8), torch.tensor(LABELS)
    results = []
    for path, weights in ((plain, "ema"), (plain / "model.safetensors", "ema"), (raw, "raw")):
        ours, theirs = flowdiff.load(path), flowdiff.load(checkpoint("digits"), weights)
        for name in ("config", "shape", "num_classes", "levels", "class_names", "data", "weights"):
            assert getattr(ours, name) == getattr(theirs, name), name
        assert load(path)[1].step == 20 and load(path)[1].entry == load(checkpoint("digits"))[1].entry
        assert torch.equal(ours.log_prob(x, 0.3, labels), theirs.log_prob(x, 0.3, labels))
        assert torch.equal(ours(x, 0.3, labels), theirs(x, 0.3, labels))
        results.append(ours.sample(4, LABELS, "heun", num_steps=3, quiet=True))
        assert torch.equal(results[-1], theirs.sample(4, LABELS, "heun", num_steps=3, quiet=True))
    assert not torch.equal(results[0], results[2])
    with pytest.raises(FlowdiffError, match="weights=raw: .* was exported with the ema weights alone"):
        flowdiff.load(plain, "raw")


def test_flowdiff_sample_takes_it_for_a_checkpoint(plain: Path, tmp_path: Path) -> None:
    found = []
    for path in (plain, checkpoint("digits")):
        words = (f"ckpt_path={path}", "num_samples=3", "num_steps=2", f"output_dir={tmp_path / path.name}")
        sample(composed("sample", *words))
        found.append(np.load(tmp_path / path.name / "samples.npz")["images"])
    assert np.array_equal(*found)


def test_what_is_no_exported_model_says_so(plain: Path, tmp_path: Path) -> None:
    def case(name: str, tensors: bytes | None = None, facts: Any = None) -> Path:
        shutil.copytree(plain, tmp_path / name)
        if tensors is not None:
            (tmp_path / name / "model.safetensors").write_bytes(tensors)
        if facts is not None:
            (tmp_path / name / "model.json").write_text(facts if isinstance(facts, str) else json.dumps(facts))
        return tmp_path / name

    whole, entry = (plain / "model.safetensors").read_bytes(), json.loads((plain / "model.json").read_text())
    tensors = load_file(plain / "model.safetensors")
    tensors.popitem()
    undigested = {key: value for key, value in entry.items() if key not in ("sha256", "signature")}
    save_file(tensors, tmp_path / "lacking.safetensors")
    cases = {
        case("cut", whole[:-100]): r"model\.safetensors can't be read; is it cut off",
        case("text", b"not tensors"): r"model\.safetensors can't be read",
        case("halfjson", facts='{"format": 1,'): r"model\.json can't be read",
        case("list", facts=[1]): "not that of a model of flowdiff",
        case("foreign", facts={"model_type": "bert"}): "its format is None",
        case("newer", facts=entry | {"format": 99}): "its format is 99",
        case(
            "lacking", (tmp_path / "lacking.safetensors").read_bytes(), undigested
        ): "the model can't be rebuilt from it",
        tmp_path / "lacking.safetensors": r"no lacking\.json beside lacking\.safetensors",
        tmp_path / "nothing.safetensors": "no such file",
    }
    for path, words in cases.items():
        with pytest.raises(FlowdiffError, match=words) as caught:
            load(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(FlowdiffError, match="an exported model can't be trained on"):
        read(plain)


def hostile(config: dict[str, Any], proof: Path) -> None:
    """The denoiser's activation is a command."""
    config["denoiser"]["flow"]["activation"] = {"_target_": "os.system", "_args_": [f"touch {proof}"]}


def test_a_hostile_model_is_not_built(plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path / "model")
    facts = json.loads((plain / "model.json").read_text())
    hostile(facts["config"], tmp_path / "proof")
    del facts["sha256"]
    (tmp_path / "model" / "model.json").write_text(json.dumps(facts))
    with pytest.raises(FlowdiffError, match=r"its configuration names .*_target_=os\.system"):
        flowdiff.load(tmp_path / "model")
    assert not (tmp_path / "proof").exists()


# -- diffusers --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The digits' checkpoint as a pipeline's folder; diffusers copies its code into a cache, here not the user's."""
    cache = tmp_path_factory.mktemp("modules")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(cache))
        patch.setattr("sys.path", list(sys.path))
        yield exported(tmp_path_factory.mktemp("diffusers"), "format=diffusers")


def opened(folder: Path) -> Any:
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("schedule", choices("schedule"))
def test_a_schedule_that_diffusers_has_not_is_said(schedule: str, capsys: pytest.CaptureFixture[str]) -> None:
    scheduler = scheduler_of({"schedule": node("schedule", schedule, sigma_min=0.01, sigma_max=40.0)})
    said = capsys.readouterr().out
    known = schedule in ("karras", "geometric")
    assert said == ("" if known else f"diffusers has no schedule={schedule}: the pipeline's noise levels are Karras'\n")
    sigmas = build("schedule", schedule if known else "karras", sigma_min=0.01, sigma_max=40.0)(8)
    scheduler.set_timesteps(8)
    torch.testing.assert_close(scheduler.sigmas[:8], sigmas.float()[:8], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_pipeline_draws_what_flowdiff_draws(folder: Path, tmp_path: Path) -> None:
    """By Euler's steps; and after a round trip by Heun's, put in place of them, at the same levels."""
    model = flowdiff.load(checkpoint("digits"))
    noise = IndexedNoise(range(4), (1, 8, 8))()
    options: dict[str, Any] = {"class_labels": LABELS, "num_inference_steps": 20, "latents": noise}
    pipe = opened(folder)
    assert isinstance(pipe.scheduler, diffusers.EulerDiscreteScheduler)
    theirs = model.sample(4, LABELS, "euler", schedule="karras", num_steps=20, quiet=True)
    assert (pipe(**options, output_type="pt").images - (theirs + 1) / 2).abs().max() < 1e-5
    images = pipe(**options).images
    assert all(np.array_equal(im, u[0]) for im, u in zip(images, model.to_uint8(theirs).numpy(), strict=True))

    pipe.scheduler = diffusers.HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(tmp_path / "again")
    pipe = opened(tmp_path / "again")
    assert isinstance(pipe.scheduler, diffusers.HeunDiscreteScheduler)
    theirs = model.sample(4, LABELS, "heun", schedule="karras", num_steps=20, guidance_scale=1.5, quiet=True)
    ours = pipe(**options, guidance_scale=1.5, output_type="np").images
    assert np.abs(ours - (theirs.permute(0, 2, 3, 1).numpy() + 1) / 2).max() < 1e-5
    # one that steps in a variance-preserving scale, and whose multistep differs in its last steps
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    theirs = model.sample(4, LABELS, "dpmpp_2m", schedule="karras", num_steps=20, quiet=True)
    assert (pipe(**options, output_type="pt").images - (theirs + 1) / 2).abs().mean() < 0.01


def test_the_pipelines_arguments(folder: Path) -> None:
    pipe = opened(folder)

    def draw(seed: int = 0, **options: Any) -> Any:
        return pipe(num_inference_steps=2, generator=torch.Generator().manual_seed(seed), **options)

    image = draw().images
    assert len(image) == 1 and isinstance(image[0], Image.Image) and image[0].size == (8, 8) and image[0].mode == "L"
    four = draw(batch_size=4, class_labels=LABELS, output_type="pt").images
    assert four.shape == (4, 1, 8, 8) and four.min() >= 0 and four.max() <= 1
    assert torch.equal(draw(class_labels=LABELS, output_type="pt").images, four)
    assert not torch.equal(draw(1, class_labels=LABELS, output_type="pt").images, four)
    assert not torch.equal(draw(batch_size=4, class_labels=7, output_type="pt").images, four)
    assert draw(batch_size=2, output_type="np", return_dict=False)[0].shape == (2, 8, 8, 1)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"class_labels": 10}, "class_labels=10: must be a class from 0 to 9"),
        ({"class_labels": [0, -1]}, r"class_labels=\[0, -1\]: must be a class from 0 to 9"),
        ({"batch_size": 3, "class_labels": LABELS}, "must be one class, or 3: one for each image"),
        ({"batch_size": 0}, "batch_size=0: must be a whole number from 1 up"),
        ({"output_type": "jpg"}, "output_type=jpg: must be pil, np, pt or latent"),
        ({"batch_size": 2, "latents": torch.zeros(1, 1, 8, 8)}, "latents=.*: must have the shape"),
    ]
    for options, message in wrong:
        with pytest.raises(FlowdiffError, match=message):
            draw(**options)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(FlowdiffError, match="scheduler=DDIMScheduler: must step in sigma"):
        draw()


def test_a_hostile_pipeline_is_not_built(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "pipe")
    file = tmp_path / "pipe" / "denoiser" / "config.json"
    config = json.loads(file.read_text())
    hostile(config["entry"]["config"], tmp_path / "proof")
    file.write_text(json.dumps(config))
    with pytest.raises(FlowdiffError, match=r"its configuration names .*_target_=os\.system"):
        opened(tmp_path / "pipe")
    assert not (tmp_path / "proof").exists()


def test_points_have_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(FlowdiffError, match="format=diffusers: two_moons: points are not images"):
        exported(tmp_path, "format=diffusers", model="toy")


def test_without_diffusers_a_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.delitem(sys.modules, "flowdiff.model.pipeline", raising=False)
    with pytest.raises(FlowdiffError, match=re.escape(f"format=diffusers: {how_to_install('latent')}")) as caught:
        exported(tmp_path, "format=diffusers")
    assert "\n" not in str(caught.value)
