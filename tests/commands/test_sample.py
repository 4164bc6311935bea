"""Sampling: what is written, that a sample depends on its seed and label alone, and what is refused."""

import json
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.utils import make_grid

from flowdiff import samplers
from flowdiff.commands.sample import sample
from flowdiff.data.labels import resolve_labels
from flowdiff.errors import FlowdiffError
from flowdiff.evaluation import pictures
from flowdiff.model.vocabulary import config_dir
from flowdiff.progress import Progress
from flowdiff.samplers import schedules
from flowdiff.samplers.batched import BatchedSampler, seeds_from
from tests.helpers.command_lines import run_on_a_full_disk
from tests.helpers.configs import composed
from tests.helpers.trained import checkpoint, edited


def draw(folder: Path, *words: str, model: str = "digits") -> Any:
    """samples.npz of a call with these words."""
    ckpt = [] if any(w.startswith("ckpt_path=") for w in words) else [f"ckpt_path={checkpoint(model)}"]
    sample(composed("sample", *ckpt, f"output_dir={folder}", *words))
    return np.load(folder / "samples.npz")


# -- what is written ------------------------------------------------------------------------------------


def test_files_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = draw(tmp_path / "three", "num_samples=5", "class_label=3", "seed=7", "num_steps=4")
    assert found["images"].shape == (5, 8, 8, 1) and found["images"].dtype == np.uint8
    assert found["labels"].tolist() == [3] * 5 and found["seeds"].tolist() == [7, 8, 9, 10, 11]
    pngs = sorted((tmp_path / "three").glob("0*.png"))
    assert len(pngs) == 5
    for png, image in zip(pngs, found["images"], strict=True):
        assert np.array_equal(np.asarray(Image.open(png)), image[..., 0])
    with Image.open(tmp_path / "three" / "grid.png") as grid:
        assert max(grid.size) >= 500
    about = json.loads((tmp_path / "three" / "samples.json").read_text())
    assert about["sampler"] == "ancestral" and about["num_steps"] == about["nfe"] == 4
    assert about["weights"] == "ema" and about["nonfinite"] == 0 and about["guidance_scale"] == 1
    assert about["labels"] == [3] * 5 and about["class_names"][3] == "3"
    assert str(tmp_path / "three" / "grid.png") in capsys.readouterr().out


def test_files_of_points(tmp_path: Path) -> None:
    found = draw(tmp_path, "num_samples=50", model="toy")
    assert found["points"].shape == (50, 2) and np.isfinite(found["points"]).all()
    assert (found["labels"] == -1).all()
    picture = np.asarray(Image.open(tmp_path / "scatter.png"))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 200  # the heat map's colours
    assert not list(tmp_path.glob("0*.png"))


def test_all_classes_in_turn_by_default(tmp_path: Path) -> None:
    found = draw(tmp_path, "num_samples=12", "num_steps=1")
    assert found["labels"].tolist() == [*range(10), 0, 1]


def test_levels_become_bytes_of_the_data(tmp_path: Path) -> None:
    levels = np.unique(draw(tmp_path, "num_steps=2")["images"])
    assert set(levels.tolist()) <= {round(255 * k / 16) for k in range(17)}


# -- a sample is a function of its seed and label ---------------------------------------------------------


SAMPLERS = sorted(p.stem for p in (config_dir() / "sampler").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_batch_size_changes_nothing(sampler: str, tmp_path: Path) -> None:
    """Not even the report of chains that are made in several batches."""
    steps = 16 if sampler in ("mala", "mcmc") else 4
    words = (f"sampler={sampler}", f"num_steps={steps}", "num_samples=70", "guidance_scale=1.5")
    whole = draw(tmp_path / "whole", *words)["images"]
    assert len(np.unique(whole.reshape(70, -1), axis=0)) == 70
    about = json.loads((tmp_path / "whole" / "samples.json").read_text())
    for size in (1, 1000) if sampler in ("ancestral", "mala") else (1,):
        assert np.array_equal(draw(tmp_path / str(size), *words, f"batch_size={size}")["images"], whole)
        assert json.loads((tmp_path / str(size) / "samples.json").read_text()) == about


@pytest.mark.slow
def test_a_schedule_from_the_model_is_the_same_for_every_sample(tmp_path: Path) -> None:
    words = ("schedule=adaptive", "num_steps=6", "guidance_scale=1.5")
    many = draw(tmp_path / "many", *words, "num_samples=70")["images"]
    one = draw(tmp_path / "one", *words, "num_samples=1", "seed=67", "class_label=7", "batch_size=1", "tile=64")
    assert np.array_equal(one["images"], many[67:68])
    about = json.loads((tmp_path / "one" / "samples.json").read_text())
    assert about["schedule"] == "adaptive" and about["nfe"] == 12 and about["nfe_schedule"] == 2 * 64 * 64
    even = draw(tmp_path / "even", *words, "schedule=geometric", "num_samples=70")["images"]
    assert not np.array_equal(even, many)


def test_number_of_samples_and_position_change_nothing(tmp_path: Path) -> None:
    words = ("num_steps=6", "class_label=3")
    many = draw(tmp_path / "many", *words, "num_samples=20", "seed=100")["images"]
    assert np.array_equal(draw(tmp_path / "few", *words, "num_samples=3", "seed=100")["images"], many[:3])
    assert np.array_equal(draw(tmp_path / "one", *words, "num_samples=1", "seed=113")["images"], many[13:14])


class Toy(nn.Module):
    """An untrained network as denoiser."""

    shape, num_classes = (1, 8, 8), 4
    has_density = has_inverse = normalized = False

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(65, 300), nn.SiLU(), nn.Linear(300, 64))
        self.rows: list[int] = []

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        assert not self.training
        self.rows.append(len(x))
        c = (sigma**2 + 0.25).rsqrt()[:, None]
        flat = self.net(torch.cat([x.flatten(1) * c, sigma[:, None].log()], 1))
        return 3 * flat.view_as(x) + (0.0 if labels is None else labels.view(-1, 1, 1, 1) * 0.1)


def batched(denoiser: nn.Module, steps: int = 5, **settings: Any) -> BatchedSampler:
    return BatchedSampler(denoiser, samplers.Ancestral(steps), schedules.Karras(0.002, 80.0), **settings)


def test_bit_for_bit_whatever_the_batch() -> None:
    labels, seeds = resolve_labels("balanced", 45, 4), seeds_from(0, 45)
    reference = batched(Toy(), batch_size=1000, tile=16).draw(labels, seeds).x
    for size in (1, 17, 32):
        assert torch.equal(batched(Toy(), batch_size=size, tile=16).draw(labels, seeds).x, reference)


def test_network_sees_whole_tiles_and_counts_evaluations() -> None:
    model = Toy()
    drawn = batched(model, tile=16, guidance_scale=2.0).draw(resolve_labels(1, 20, 4), seeds_from(0, 20))
    assert set(model.rows) == {16} and len(model.rows) == 2 * 2 * 5
    assert drawn.nfe == 10


def test_images_are_held_to_their_range() -> None:
    free = batched(Toy()).draw(None, seeds_from(0, 8)).x
    held = batched(Toy(), clip=(-1.0, 1.0)).draw(None, seeds_from(0, 8)).x
    assert free.abs().max() > 1 >= held.abs().max()


def test_training_mode_is_given_back() -> None:
    model = Toy().train()
    batched(model, steps=1).draw(None, seeds_from(0, 1))
    assert model.training


def test_samples_that_are_not_finite_are_counted() -> None:
    model = Toy()
    with torch.no_grad():
        model.net[2].bias[0] = float("nan")
    assert batched(model, steps=2).draw(None, seeds_from(0, 3)).nonfinite == 3


# -- settings ---------------------------------------------------------------------------------------------


def test_guidance_of_one_is_none_and_more_is_different(tmp_path: Path) -> None:
    words = ("num_samples=4", "num_steps=8", "class_label=3")
    plain = draw(tmp_path / "plain", *words)["images"]
    assert np.array_equal(draw(tmp_path / "one", *words, "guidance_scale=1")["images"], plain)
    assert not np.array_equal(draw(tmp_path / "four", *words, "guidance_scale=4")["images"], plain)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler(sampler: str, tmp_path: Path) -> None:
    draw(tmp_path, f"sampler={sampler}", "num_samples=2", "num_steps=3", "sigma_start=0.5", "sigma_max=20")
    about = json.loads((tmp_path / "samples.json").read_text())
    assert about["sampler"] == sampler and about["nonfinite"] == 0
    assert about["sigma_max"] == (0.5 if "inversion" in sampler or sampler == "mcmc" else 20)
    assert about["num_steps"] == (1 if sampler == "inversion" else 3)
    assert about["inversions"] == (1 if "inversion" in sampler or sampler == "mcmc" else 0)
    assert about["nfe_forward"] == about["nfe_gradient"] == about["nfe"] - about["inversions"]


def test_evaluations_are_counted_apart(tmp_path: Path) -> None:
    """D of a flow is a forward pass and a gradient, that of a UNet a forward pass; guidance makes two of each."""
    words = ("sampler=heun", "num_steps=3", "num_samples=2", "guidance_scale=2")
    for model, gradients in (("digits", 10), ("unet", 0)):
        draw(tmp_path / model, *words, model=model)
        about = json.loads((tmp_path / model / "samples.json").read_text())
        assert [about[key] for key in ("nfe", "nfe_forward", "nfe_gradient", "inversions")] == [10, 10, gradients, 0]


@pytest.mark.slow
def test_what_a_sampler_measures_is_written_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(tmp_path / "mala", "sampler=mala", "num_steps=12", "num_samples=20")
    about, said = json.loads((tmp_path / "mala" / "samples.json").read_text()), capsys.readouterr().out
    assert 0.2 < about["acceptance"] < 0.95 and len(about["acceptance_by_sigma"]) == 8
    assert f"mala: acceptance {about['acceptance']:g}, acceptance_by_sigma (" in said
    draw(tmp_path / "mcmc", "sampler=mcmc", "num_steps=40", "sigma_start=0.1", "num_samples=30", model="toy")
    about, said = json.loads((tmp_path / "mcmc" / "samples.json").read_text()), capsys.readouterr().out
    assert about["chains"] == 30 and about["draws"] == 20 and about["nfe"] == 43 and about["sigma_max"] == 0.1
    assert about["rhat_max"] >= about["rhat_median"] > 0.9 and about["ess_median"] >= about["ess_min"] > 0
    assert f"rhat_max {about['rhat_max']:g}" in said
    draw(tmp_path / "heun", "sampler=heun", "num_samples=2", "num_steps=2")
    assert "acceptance" not in (tmp_path / "heun" / "samples.json").read_text()


def test_ula_needs_no_density_and_its_images_stay_in_range() -> None:
    ula = BatchedSampler(Toy(), samplers.Ula(5), schedules.Karras(0.002, 80.0), clip=(-1.0, 1.0))
    drawn = ula.draw(None, seeds_from(0, 4))
    assert drawn.x.abs().max() <= 1 and drawn.evaluations == {"nfe_forward": 10, "nfe_gradient": 0, "inversions": 0}
    lms = BatchedSampler(Toy(), samplers.Lms(5), schedules.Karras(0.002, 80.0), clip=(-1.0, 1.0))
    assert lms.draw(None, seeds_from(0, 4)).x.abs().max() <= 1


@pytest.mark.parametrize("schedule", sorted(p.stem for p in (config_dir() / "schedule").glob("*.yaml")))
def test_every_schedule(schedule: str, tmp_path: Path) -> None:
    draw(tmp_path, f"schedule={schedule}", "num_samples=2", "num_steps=2", "sigma_min=0.01")
    about = json.loads((tmp_path / "samples.json").read_text())
    assert about["schedule"] == schedule and about["sigma_min"] == 0.01


def test_one_key_of_the_checkpoints_sampler(tmp_path: Path) -> None:
    words = ("num_samples=3", "num_steps=6")
    plain = draw(tmp_path / "a", *words)["images"]
    changed = draw(tmp_path / "b", *words, "+sampler.eta=0.2")["images"]
    assert json.loads((tmp_path / "b" / "samples.json").read_text())["sampler"] == "ancestral"
    assert not np.array_equal(plain, changed)


def test_raw_weights_are_those_of_the_last_step(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        raw = content["current_model_state"]
        for key in raw:
            if "flow" in key and raw[key].is_floating_point():
                raw[key] = raw[key] * 3

    edited(checkpoint("digits"), tmp_path / "changed.ckpt", change)
    words = ("num_samples=2", "num_steps=4", f"ckpt_path={tmp_path}/changed.ckpt")
    plain = draw(tmp_path / "plain", *words[:2])["images"]
    assert np.array_equal(draw(tmp_path / "ema", *words)["images"], plain)
    assert not np.array_equal(draw(tmp_path / "raw", *words, "weights=raw")["images"], plain)


class Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return exec, ("raise SystemExit('code of the checkpoint has run')",)


def test_checkpoints_that_are_none(tmp_path: Path) -> None:
    good = checkpoint("digits").read_bytes()
    cut, foreign, hostile = tmp_path / "cut.ckpt", tmp_path / "foreign.ckpt", tmp_path / "hostile.ckpt"
    cut.write_bytes(good[: len(good) // 2])
    torch.save({"state_dict": {}}, foreign)
    hostile.write_bytes(pickle.dumps(Evil()))
    for file, message in ((cut, "cut off"), (foreign, "not a checkpoint of flowdiff"), (hostile, "not")):
        with pytest.raises(FlowdiffError, match=message):
            draw(tmp_path / "out", f"ckpt_path={file}")


def test_a_checkpoint_does_not_choose_what_is_called(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    evil = {"_target_": "pathlib.Path.touch", "self": str(marker)}
    edited(checkpoint("digits"), tmp_path / "evil.ckpt", lambda c: c["flowdiff"]["config"].update(sampler=evil))
    with pytest.raises(FlowdiffError, match="pathlib.Path.touch"):
        draw(tmp_path / "out", f"ckpt_path={tmp_path / 'evil.ckpt'}")
    assert not marker.exists()


# -- the command line ---------------------------------------------------------------------------------------


def test_command_in_another_folder_without_data(tmp_path: Path, command: Callable[..., Any]) -> None:
    shutil.copy(checkpoint("digits"), tmp_path / "moved.ckpt")
    done = command(
        "sample", "ckpt_path=moved.ckpt", "num_samples=3", "num_steps=5", "class_label=3", "output_dir=outputs/three"
    )
    assert done.returncode == 0, done.stderr
    here = draw(tmp_path / "here", "num_samples=3", "num_steps=5", "class_label=3")["images"]
    assert np.array_equal(np.load(tmp_path / "outputs/three/samples.npz")["images"], here)
    assert "outputs/three" in done.stdout and "\x1b" not in done.stdout
    assert json.loads((tmp_path / "outputs/three/status.json").read_text())["status"] == "done"


@pytest.mark.slow
def test_a_full_disk_keeps_what_was_there(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    out = tmp_path / "out"
    draw(out, "num_samples=4", "num_steps=1")
    before = (out / "grid.png").read_bytes()
    assert len(before) > 2048
    words = (f"ckpt_path={checkpoint('digits')}", f"output_dir={out}", "num_samples=4", "num_steps=1", "seed=50")
    done = run_on_a_full_disk("sample", words, tmp_path, tmp_path_factory.mktemp("said"), room=2048)
    assert done.returncode == 1
    assert "can't write" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert (out / "grid.png").read_bytes() == before
    assert not list(out.glob(".*part"))


# -- pictures and progress ------------------------------------------------------------------------------------


def test_grid_keeps_every_pixel() -> None:
    images = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8)
    grid = pictures.image_grid(images, columns=3, min_side=3 * 8 * 4)
    assert grid.shape[0] == 3
    first = grid[0, 2 : 2 + 32, 2 : 2 + 32]
    assert torch.equal(first[::4, ::4], images[0, 0]) and torch.equal(first[3::4, 3::4], images[0, 0])


@pytest.mark.parametrize("n", [1, 2, 5, 12])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_is_torchvisions(n: int, channels: int) -> None:
    images = torch.randint(0, 256, (n, channels, 7, 5), dtype=torch.uint8)
    for columns in {1, min(n, 3), n}:
        expected = make_grid(images, nrow=columns, padding=2, pad_value=96)
        assert torch.equal(pictures.set_side_by_side(images, columns, gap=2), expected)


def test_density_is_drawn_where_it_is() -> None:
    points = torch.tensor([[-1.0, -1.0], [1.0, 1.0]]).repeat(50, 1)
    picture = pictures.density_scatter(points, lambda x: -((x - torch.tensor([0.8, 0.8])) ** 2).sum(1) * 8).float()
    _, height, width = picture.shape
    upper_right = picture[:, : height // 2, width // 2 : int(width * 0.75)].mean()
    lower_left = picture[:, height // 2 : int(height * 0.9), int(width * 0.1) : width // 3].mean()
    assert upper_right > lower_left + 10


def test_progress_on_a_terminal_and_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("working", 10, delay=60) as quick:
        quick.advance(10)
    assert capsys.readouterr().err == ""
    with Progress("working", 4, delay=0.01, interval=0) as slow:
        for _ in range(4):
            time.sleep(0.02)
            slow.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("working: 1/4 (25 %)") and lines[-1].startswith("working: 4/4 (100 %)")
