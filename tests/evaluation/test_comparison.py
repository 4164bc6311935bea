"""Two models side by side: the same data, noise, seeds and sampler, one table, one line for what can't be compared."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from flowdiff.commands.evaluate import evaluate
from flowdiff.data.digits import Digits
from flowdiff.denoisers.sdxl import SDXL
from flowdiff.denoisers.unet_pretrained import PretrainedUNet2D
from flowdiff.errors import FlowdiffError
from flowdiff.evaluation.comparison import compare
from flowdiff.model.checkpoint import load
from tests.helpers.configs import composed
from tests.helpers.ready_made import tiny_unet2d
from tests.helpers.sdxl import tiny_sdxl
from tests.helpers.trained import checkpoint, edited

pytestmark = pytest.mark.slow

CHEAP = ("metrics.cost.num_samples=8", "metrics.cost.batch_size=8", "metrics.cost.repeats=1")


def both(folder: Path, *words: str, model: str = "digits") -> tuple[dict[str, Any], dict[str, Any]]:
    """metrics.json of the checkpoint and of the other model."""
    words = (f"ckpt_path={checkpoint(model)}", f"output_dir={folder}", "tile=50", *words)
    result = evaluate(composed("evaluate", *words))
    found = [json.loads((place / "metrics.json").read_text()) for place in (folder, *others(folder))]
    assert found == [result["metrics"], result["against"]]
    return found[0], found[1]


def others(folder: Path) -> list[Path]:
    return [place for place in folder.iterdir() if place.is_dir()]


def test_a_model_beside_itself_measures_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("metrics=[denoising,recognised]", "sampler=heun", "num_steps=2", "seed=5", "split=val")
    few = ("metrics.denoising.sigmas=[0.5]", "metrics.recognised.num_samples=100")
    ours, theirs = both(tmp_path, f"against={checkpoint('digits')}", *words, *few)
    assert ours == theirs and ours["recognised"]["seed"] == 5
    assert [place.name for place in others(tmp_path)] == ["against"]
    assert (tmp_path / "against" / "samples.png").read_bytes() == (tmp_path / "samples.png").read_bytes()
    out = capsys.readouterr().out
    assert str(tmp_path / "comparison.csv") in out and "heun, 2 steps, NFE 3" in out


def test_a_ready_made_sdxl_beside_a_checkpoint(tmp_path: Path) -> None:
    folder = tiny_sdxl(1)
    metrics = "metrics=[denoising,recognised,bits_per_dim,cost]"
    few = ("metrics.denoising.sigmas=[0.2,5]", "metrics.recognised.num_samples=20", "num_steps=2", *CHEAP)
    ours, theirs = both(tmp_path, "denoiser=sdxl", f"denoiser.path={folder}", metrics, *few)
    assert [place.name for place in others(tmp_path)] == ["sdxl"]
    sdxl = SDXL((1, 8, 8), 10, str(folder), class_names=[str(c) for c in range(10)])
    assert theirs["parameters"]["value"] == sum(p.numel() for p in sdxl.parameters()) != ours["parameters"]["value"]
    k, labels = Digits().images("test")
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(k), generator=torch.Generator().manual_seed(0))
    x0 = Digits().to_model(k[rows], generator)
    x = x0 + 5 * torch.randn(x0.shape, generator=generator)
    rmse = (sdxl(x, 5.0, labels[rows]) - x0).square().mean().sqrt().item()
    assert theirs["denoising_ratio/5"]["rmse"] == pytest.approx(rmse, rel=1e-4)
    filters = [found["denoising_ratio/5"]["rmse"] / found["denoising_ratio/5"]["value"] for found in (ours, theirs)]
    assert filters[0] == pytest.approx(filters[1])
    for key in ("sampler", "schedule", "num_steps", "nfe", "seed", "n", "sigma_max"):
        assert ours["recognised"][key] == theirs["recognised"][key]
    assert theirs["recognised"]["weights"] == "pretrained" and "bits_per_dim" not in theirs
    table = list(csv.DictReader((tmp_path / "comparison.csv").open()))
    assert [row["metric"] for row in table] == list(ours)
    for row in table:
        for column, found in (("checkpoint", ours), ("sdxl", theirs)):
            value = found.get(row["metric"], {}).get("value")
            assert row[column] == ("" if value is None else str(value))
    text = (tmp_path / "comparison.md").read_text()
    assert (
        "| metric | checkpoint | sdxl |" in text
        and f"| bits_per_dim | {ours['bits_per_dim']['value']:.4g} | – |" in text
    )
    assert f"* sdxl: SDXL, pretrained weights of {folder}" in text.replace("\\_", "_")


def test_a_unet2d_of_diffusers_beside_a_checkpoint(tmp_path: Path) -> None:
    """A folder that has neither classes nor an inverse, measured where it can be."""
    words = ("metrics=[denoising,fd,recognised]", "metrics.denoising.sigmas=[0.5]", "metrics.fd.num_samples=100")
    few = ("num_steps=2", "metrics.recognised.num_samples=20")
    ready = ("denoiser=unet_diffusers_pretrained", f"denoiser.path={tiny_unet2d()}")
    ours, theirs = both(tmp_path, *ready, *words, *few)
    assert [place.name for place in others(tmp_path)] == ["pretrainedunet2d"]
    unet = PretrainedUNet2D((1, 8, 8), 10, str(tiny_unet2d()))
    k, _ = Digits().images("test")
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(k), generator=torch.Generator().manual_seed(0))
    x0 = Digits().to_model(k[rows], generator)
    x = x0 + 0.5 * torch.randn(x0.shape, generator=generator)
    rmse = (unet(x, 0.5) - x0).square().mean().sqrt().item()
    assert theirs["denoising_ratio/0.5"]["rmse"] == pytest.approx(rmse, rel=1e-4)
    fd = "fd_mlp_digits"
    assert theirs[fd]["n"] == 100 and theirs[fd]["sampler"] == ours[fd]["sampler"]
    assert "recognised" in ours and "recognised" not in theirs


def test_a_sampler_that_the_other_model_has_no_use_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = "metrics.recognised.num_samples=20"
    words = ("metrics=[recognised]", few, "sampler=inversion_denoise", "num_steps=3")
    ours, theirs = both(tmp_path, f"against={checkpoint('unet')}", *words)
    assert ours["recognised"]["sampler"] == "inversion_denoise"
    assert theirs["recognised"]["sampler"] == "ancestral" and theirs["recognised"]["num_steps"] == 3
    said = "against has no inverse for sampler=inversion_denoise: sampling it with sampler=ancestral num_steps=3"
    assert said in capsys.readouterr().out


def test_rmse_where_only_one_is_told_the_class(tmp_path: Path) -> None:
    columns = {}
    for name in ("checkpoint", "against"):
        told = "class" if name == "against" else "none"
        entry = {"value": 0.8, "n": 10, "rmse": 0.123456, "filter": told}
        few = {"toy": {"value": None, "n": 3}, "parameters": {"value": 12345, "n": 1}}
        columns[name] = {"denoising_ratio/1": entry, **few}
    files = compare(tmp_path, "digits", columns, {"checkpoint": "a flow"})
    text = files[1].read_text()
    assert "| denoising_rmse/1 | 0.1235 | 0.1235 | 10 | – |" in text and "ratio" not in text
    assert "| toy | not finite | not finite | 3 |" in text and "| 12,345 |" in text and "* checkpoint: a flow" in text


def test_models_of_other_data(tmp_path: Path) -> None:
    edited(checkpoint("digits"), tmp_path / "other.ckpt", lambda content: content["flowdiff"].update(data="letters"))
    assert load(tmp_path / "other.ckpt")[1].data == "letters"
    with pytest.raises(FlowdiffError, match="against=.*was trained on letters of shape .*, the checkpoint on digits"):
        both(tmp_path / "out", "metrics=[denoising]", f"against={tmp_path}/other.ckpt")
