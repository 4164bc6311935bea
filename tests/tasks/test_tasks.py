"""The tasks of conf/task: what they write, what stays as it was, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import flowdiff
from flowdiff.commands.sample import sample
from flowdiff.data.digits import Digits
from flowdiff.errors import FlowdiffError
from flowdiff.model.api import Model
from flowdiff.tasks.latent import slerp
from tests.helpers.configs import choices, composed
from tests.helpers.trained import checkpoint

pytestmark = pytest.mark.slow


def perform(folder: Path, *words: str, model: str = "digits") -> tuple[Any, dict[str, Any]]:
    """samples.npz and samples.json of a call with these words."""
    sample(composed("sample", f"ckpt_path={checkpoint(model)}", f"output_dir={folder}", *words))
    return np.load(folder / "samples.npz"), json.loads((folder / "samples.json").read_text())


def truth_bytes() -> tuple[np.ndarray, np.ndarray]:
    """The images of the test split, (N, 8, 8, 1) uint8, and their labels."""
    data = Digits()
    k, labels = data.images("test")
    return data.levels_to_uint8(k).permute(0, 2, 3, 1).numpy(), labels.numpy()


@pytest.mark.parametrize("task", choices("task"))
def test_files(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint("digits")
    capsys.readouterr()  # of its training
    found, about = perform(tmp_path, f"task={task}", "num_samples=2", "num_steps=3")
    n = len(found["images"])
    assert found["images"].shape == (n, 8, 8, 1) and found["images"].dtype == np.uint8
    assert len(found["labels"]) == len(found["seeds"]) == n == about["n"]
    assert about["task"] == task and about["data"] == "digits" and about["nonfinite"] == 0
    pngs = sorted(tmp_path.glob("0*.png"))
    assert len(pngs) == n
    assert np.array_equal(np.asarray(Image.open(pngs[-1])), found["images"][-1, ..., 0])
    with Image.open(tmp_path / "grid.png") as grid:
        assert max(grid.size) >= 500
    out = capsys.readouterr().out
    assert out.startswith(f"{task}: {n} images of digits") and str(tmp_path / "grid.png") in out


@pytest.mark.parametrize("task", choices("task"))
def test_batch_size_changes_nothing(task: str, tmp_path: Path) -> None:
    words = (f"task={task}", "num_samples=17", "num_steps=2")
    whole, _ = perform(tmp_path / "whole", *words)
    small, _ = perform(tmp_path / "small", *words, "batch_size=1")
    assert len(whole["images"]) > 64, "more than one batch of the second call"
    for key in whole.files:
        assert np.array_equal(whole[key], small[key]), key


@pytest.mark.parametrize("mask", ["left", "right", "top", "bottom", "center", "random:0.5", "file"])
def test_known_pixels_come_out_bit_for_bit(mask: str, tmp_path: Path) -> None:
    if mask == "file":
        np.save(tmp_path / "mask.npy", np.eye(8))
    word = f"mask={tmp_path}/mask.npy" if mask == "file" else f"mask={mask}"
    found, about = perform(tmp_path / "out", "task=inpaint", word, "num_samples=5", "num_steps=3")
    truth, labels = truth_bytes()
    assert found["images"].shape == (20, 8, 8, 1) and about["index"] == list(range(5))
    assert np.array_equal(found["labels"], labels[:5].repeat(4))
    assert np.array_equal(found["originals"].transpose(0, 2, 3, 1), truth[:5])
    same = (found["images"].reshape(5, 4, 8, 8) == truth[:5, None, :, :, 0]).swapaxes(0, 1)
    missing = found["missing"][:, 0]
    assert missing.sum() == {"center": 5 * 16, "file": 5 * 8}.get(mask, 5 * 32)
    assert same[:, ~missing].all() and same[:, missing].mean() < 0.6
    assert len(np.unique(found["images"].reshape(20, -1), axis=0)) == 20


def test_block_means_are_kept(tmp_path: Path) -> None:
    found, about = perform(tmp_path, "task=super_resolution", "task.factor=4", "num_samples=3", "num_steps=3")
    model, truth = flowdiff.load(checkpoint("digits")), Digits()
    x0 = truth.to_centres(truth.images("test")[0][:3])
    low = torch.nn.functional.avg_pool2d(x0, 4)
    x = model.super_resolution(low, truth.images("test")[1][:3], 4, batched=model.batched(num_steps=3), quiet=True)
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(x.flatten(0, 1), 4), low.repeat_interleave(4, 0))
    assert np.array_equal(model.to_uint8(x.flatten(0, 1)).permute(0, 2, 3, 1).numpy(), found["images"])
    assert about["factor"] == 4


def test_what_is_measured(tmp_path: Path) -> None:
    words = ("task=inpaint", "mask=top", "num_samples=6", "num_steps=4", "task.completions=2")
    found, about = perform(tmp_path, *words)
    data = Digits()
    k, labels = data.images("train")
    test, own = data.images("test")
    x0 = data.to_centres(test[:6])[:, 0, :4]

    def mse(k: torch.Tensor) -> float:
        return float(((2 * k + 1) / 17 - 1 - x0).square().mean())

    assert about["mse_mean_image"] == pytest.approx(mse(k.float().mean(0)[0, :4]), rel=1e-4)
    of_class = torch.stack([k[labels == c].float().mean(0)[0, :4] for c in own[:6]])
    assert about["mse_class_mean"] == pytest.approx(mse(of_class), rel=1e-4)
    x = data.to_centres(torch.from_numpy(found["images"] / 255 * 16).round().to(torch.uint8))[:, :4, :, 0]
    assert about["mse"] == pytest.approx(float((x.view(6, 2, 4, 8) - x0[:, None]).square().mean()), rel=0.05)
    assert about["mse_of_mean"] < about["mse"]
    rates = list(about["acceptance_by_sigma"].values())
    assert len(rates) == 4 and about["acceptance"] == pytest.approx(sum(rates) / 4)
    model = flowdiff.load(checkpoint("digits"))
    originals = data.to_centres(test[:6])
    assert about["log_prob_original"] == pytest.approx(
        float(model.log_prob(originals, 0.002, own[:6]).mean()), rel=1e-4
    )


def test_which_images(tmp_path: Path) -> None:
    words = ("task=inpaint", "num_steps=1", "task.completions=1")
    truth, labels = truth_bytes()
    for folder, given, index in (("a", "[7,3]", [7, 3]), ("b", "40", [40, 41])):
        n = [] if given[0] == "[" else ["num_samples=2"]
        found, about = perform(tmp_path / folder, *words, *n, f"task.index={given}")
        assert about["index"] == index
        assert np.array_equal(found["originals"][:, 0], truth[index, ..., 0])
        assert np.array_equal(found["labels"], labels[index])
    found, _ = perform(tmp_path / "none", *words, "class_label=none", "num_samples=2")
    assert (found["labels"] == -1).all()
    found, _ = perform(tmp_path / "three", *words, "class_label=3", "num_samples=2")
    assert (found["labels"] == 3).all()
    _, about = perform(tmp_path / "train", *words, "task.split=train", "num_samples=2")
    assert about["split"] == "train" and about["log_prob_original"] != 0


def test_a_completion_is_a_function_of_its_seed(tmp_path: Path) -> None:
    words = ("task=inpaint", "num_steps=3", "mask=random:0.5")
    many, _ = perform(tmp_path / "many", *words, "num_samples=4")
    one, _ = perform(tmp_path / "one", *words, "num_samples=1", "task.index=2", "seed=8")
    assert np.array_equal(one["images"], many["images"][8:12])


def test_replacement_alone_works_without_a_density(tmp_path: Path) -> None:
    words = ("task=inpaint", "num_samples=2", "num_steps=3")
    _, about = perform(tmp_path / "unet", *words, "task.n_corrector=0", model="unet")
    assert "acceptance" not in about and "log_prob" not in about and about["mse"] > 0
    flow, about = perform(tmp_path / "alone", *words, "task.n_corrector=0")
    assert about["nfe"] == 3
    corrected, about = perform(tmp_path / "corrected", *words, "task.n_corrector=2")
    assert about["nfe"] == 3 * (1 + 3)
    assert not np.array_equal(flow["images"], corrected["images"])


def test_guidance_and_sampler_are_those_of_the_command_line(tmp_path: Path) -> None:
    words = ("task=inpaint", "num_samples=2", "num_steps=3")
    plain, _ = perform(tmp_path / "plain", *words)
    guided, about = perform(tmp_path / "guided", *words, "guidance_scale=3")
    assert about["guidance_scale"] == 3 and not np.array_equal(plain["images"], guided["images"])
    _, about = perform(tmp_path / "heun", *words, "sampler=heun", "sigma_max=20")
    assert about["sampler"] == "heun" and list(about["acceptance_by_sigma"])[0] == "20"


@pytest.mark.parametrize("sampler", ["inversion", "inversion_denoise", "mcmc"])
def test_a_sampler_that_begins_with_an_image_of_its_own_gives_way(sampler: str, tmp_path: Path) -> None:
    words = ("task=inpaint", "num_samples=2")
    found, about = perform(tmp_path / "a", *words, f"sampler={sampler}", "num_steps=3")
    assert (about["sampler"], about["num_steps"], about["sigma_max"]) == ("ancestral", 3, 80)
    plain, _ = perform(tmp_path / "b", *words, "sampler=ancestral", "num_steps=3")
    assert np.array_equal(found["images"], plain["images"])
    _, about = perform(tmp_path / "c", *words, f"sampler={sampler}", "task.n_corrector=0")
    assert about["num_steps"] == 64


# -- the latent ---------------------------------------------------------------------------------------------


def test_slerp() -> None:
    a, b = torch.tensor([[3.0, 0.0], [1.0, 2.0]]), torch.tensor([[0.0, 5.0], [2.0, 4.0]])
    half = torch.full((2,), 0.5)
    torch.testing.assert_close(slerp(a, b, half), torch.tensor([[3 * 0.5**0.5, 5 * 0.5**0.5], [1.5, 3.0]]))
    assert torch.equal(slerp(a, b, torch.zeros(2)), a) and torch.equal(slerp(a, b, torch.ones(2)), b)
    unit, t = torch.nn.functional.normalize(torch.randn(2, 9, 30)[:, :1], dim=2)[:, 0].expand(2, 30), torch.rand(2)
    torch.testing.assert_close(slerp(unit[:1], unit[1:], t[:1]).norm(dim=1), torch.ones(1))


def test_the_ends_of_a_path_are_the_images(tmp_path: Path) -> None:
    found, about = perform(tmp_path, "task=interpolate", "task.index=[4,9,2,2]", "task.steps=5", "sigma_start=0.3")
    data = Digits()
    x0 = data.to_centres(data.images("test")[0][[4, 9, 2, 2]]).numpy()
    inverted = found["inverted"].reshape(2, 5, 1, 8, 8)
    assert np.abs(inverted[:, 0] - x0[::2]).max() < 1e-4 and np.abs(inverted[:, -1] - x0[1::2]).max() < 1e-4
    assert np.abs(inverted[0, 2] - x0[0]).max() > 0.1 and np.abs(inverted[0, 2] - x0[1]).max() > 0.1
    assert np.abs(inverted[1] - x0[2]).max() < 1e-4, "from an image to itself: it stays there"
    assert about["end_error"] < 1e-4
    assert about["sampler"] == "inversion_denoise" and about["sigma_start"] == 0.3
    assert np.allclose(found["t"].reshape(2, 5), np.linspace(0, 1, 5), atol=1e-6)
    model = flowdiff.load(checkpoint("digits"))
    log_prob = model.log_prob(torch.from_numpy(x0), 0.3)
    assert about["log_prob_path"][0] == pytest.approx(float(log_prob[::2].mean()), abs=0.01)
    assert about["log_prob_blend"][-1] == pytest.approx(float(log_prob[1::2].mean()), abs=0.01)


def test_one_latent_at_every_level(tmp_path: Path) -> None:
    found, about = perform(tmp_path, "task=traverse", "num_samples=3", "task.levels=4", "class_label=[5,6,7]")
    assert found["labels"].tolist() == [5] * 4 + [6] * 4 + [7] * 4 and len(about["change"]) == 3
    sigmas = np.array(about["sigmas"])
    assert sigmas[0] == 80 and sigmas[-1] == 0.002 and np.allclose(np.diff(np.log(sigmas)), np.log(sigmas[1] / 80))
    model = flowdiff.load(checkpoint("digits"))
    x, labels = torch.from_numpy(found["x"]), torch.from_numpy(found["labels"])
    levels = torch.from_numpy(found["sigmas"])
    z = model.latent(x, levels, labels).view(3, 4, -1)
    torch.testing.assert_close(z, z[:, :1].expand_as(z), rtol=0, atol=5e-3)
    assert np.array_equal(
        found["images"][:, ..., 0], model.to_uint8(model(x, levels, labels).clamp(-1, 1))[:, 0].numpy()
    )


# -- the notebook -------------------------------------------------------------------------------------------


def test_api(tmp_path: Path) -> None:
    model, data = flowdiff.load(checkpoint("digits")), Digits()
    k, labels = data.images("test")
    x, how = data.to_centres(k[:3]), model.batched(num_steps=3)
    found, _ = perform(tmp_path, "task=inpaint", "mask=right", "num_samples=3", "num_steps=3", "seed=5")
    drawn = model.inpaint(x, "right", labels[:3], 4, batched=how, seed=5, quiet=True)
    assert np.array_equal(model.to_uint8(drawn.flatten(0, 1))[:, 0].numpy(), found["images"][..., 0])
    missing = torch.zeros(8, 8, dtype=torch.bool)
    missing[:, 4:] = True
    hidden = x.masked_fill(missing, torch.nan)
    assert torch.equal(model.inpaint(hidden, missing, labels[:3], 4, batched=how, seed=5, quiet=True), drawn)
    assert torch.equal(drawn[:, :, :, :, :4], x[:, None, :, :, :4].expand(3, 4, 1, 8, 4))
    z = model.latent(x, 0.5, 3)
    torch.testing.assert_close(model.inverse(z, 0.5, 3), x, rtol=0, atol=1e-4)


def wrong_calls() -> list[tuple[Callable[[Model], Any], str]]:
    x = torch.zeros(2, 1, 8, 8)
    return [
        (lambda m: m.inpaint(x[:, :, :5], "left"), r"x has the shape \(2, 1, 5, 8\), must be \(n, 1, 8, 8\)"),
        (lambda m: m.inpaint(x, "middle"), "mask=middle: must be"),
        (lambda m: m.inpaint(x, "left", 12), "labels=12"),
        (lambda m: m.inpaint(x, "left", completions=0), "completions=0"),
        (lambda m: m.inpaint(x, "left", n_corrector=-1), "n_corrector=-1"),
        (lambda m: m.super_resolution(x), "x has the shape"),
        (lambda m: m.super_resolution(x[..., :3, :3]), "x has the shape"),
    ]


@pytest.mark.parametrize(("call", "message"), wrong_calls())
def test_wrong_calls(call: Callable[[Model], Any], message: str) -> None:
    with pytest.raises(FlowdiffError, match=message):
        call(flowdiff.load(checkpoint("digits")))


def test_command(tmp_path: Path, command: Callable[..., Any]) -> None:
    words = (f"ckpt_path={checkpoint('digits')}", "num_samples=2", "num_steps=2", "output_dir=out")
    done = command("sample", *words, "task=inpaint", "mask=random:0.5", "class_label=none")
    assert done.returncode == 0, done.stderr
    assert "accepted" in done.stdout and (tmp_path / "out" / "grid.png").is_file()
