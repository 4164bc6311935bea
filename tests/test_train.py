"""Training in-process: every choice trains, the average is what is looked at, resuming is exact, NaNs stop the run."""

import csv
import os
from pathlib import Path

import pytest
import torch
from conftest import BARE, Compose
from torch import Tensor

from flowdiff import checkpoint, cli
from flowdiff.errors import FlowdiffError
from flowdiff.module import Diffusion, NonFiniteError
from flowdiff.train import train

#: Words that a choice needs beside it to train in a test: its own sizes in place of those of the default flow.
SMALL = {
    "flow=linear": ["flow.n_flows=1"],
    "flow=conv": ["flow.n_flows=2", "flow.width=8"],
    "flow=spectral": ["flow.n_flows=2", "flow.width=8", "flow.leading=16"],
    "flow=stack": ["flow.flows.pixels.n_flows=2", "flow.flows.leading.n_flows=2", "flow.flows.leading.leading=16"],
    "flow=coupling": ["flow.n_flows=2", "flow.width=16"],
    "denoiser=unet": ["denoiser.width=8", "denoiser.multipliers=[1]"],
}
GROUPS = ("activation", "conditioning", "dataset", "denoiser", "experiment", "flow", "loss", "noise", "precondition")
GROUPS += ("sampler", "schedule", "logger", "callbacks", "debug", "trainer", "metrics")


def choices() -> list[str]:
    """``group=choice`` for every YAML file in conf/."""
    folder = cli.config_dir()
    found = [f"{group}={file.stem}" for group in GROUPS for file in sorted((folder / group).glob("*.yaml"))]
    assert len(found) > 50
    return found


def test_groups_are_all_known() -> None:
    folders = {path.name for path in cli.config_dir().iterdir() if path.is_dir() and list(path.glob("*.yaml"))}
    assert folders - {"hydra", "__pycache__"} == set(GROUPS)


@pytest.mark.parametrize("choice", choices())
def test_every_choice_trains(choice: str, config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group, _, name = choice.partition("=")
    words = [choice if group != "metrics" else f"metrics=[{name}]", *needed(choice, tmp_path)]
    if "WANDB_MODE" not in os.environ:
        monkeypatch.setenv("WANDB_MODE", "offline")
    if group in ("experiment", "dataset") and name in ("mnist", "fashion_mnist", "guide_mnist"):
        if not os.environ.get("FLOWDIFF_DATA"):
            pytest.skip("FLOWDIFF_DATA is not set")
    if choice == "trainer=gpu" and not torch.cuda.is_available():
        with pytest.raises(FlowdiffError, match="use trainer=cpu"):
            train(config(*words, tiny=False))
        return
    if choice == "logger=wandb":
        pytest.importorskip("wandb")
    if choice in ("trainer=ddp",):
        pytest.skip("in tests/test_cli.py: it starts a process of its own")
    result = train(config(*words, tiny=False))
    assert result["step"] == 2
    assert all(torch.isfinite(torch.tensor(value)) for value in result["validation"].values())


def needed(choice: str, tmp_path: Path) -> list[str]:
    """The words that make a choice small and fast."""
    group, _, name = choice.partition("=")
    words = ["trainer.max_steps=2", "dataset.batch_size=8", "num_steps=2", "evaluate=null"]
    words += ["trainer.limit_val_batches=1"] if choice != "debug=limit" else []
    if group not in ("callbacks", "debug"):
        words += ["callbacks=minimal"]
    if group not in ("logger", "debug"):
        words += ["logger=none"]
    if group not in ("metrics",):
        words += ["metrics=[]"]
    if choice in SMALL:
        words += SMALL[choice]
    elif group != "experiment":
        words += ["flow.n_flows=2", "flow.width=16"]
    if group == "dataset" and name in ("cifar10", "images"):
        words += fake_images(name, tmp_path)
    if choice == "experiment=cifar10":
        words += fake_images("cifar10", tmp_path)
    return words


def fake_images(name: str, folder: Path) -> list[str]:
    """Images to stand in for those that must be downloaded; their words."""
    if name == "cifar10":
        pytest.skip("CIFAR-10 has to be downloaded")
    from PIL import Image
    from torchvision.transforms.functional import to_pil_image

    generator = torch.Generator().manual_seed(0)
    for kind in ("a", "b"):
        (folder / "images" / kind).mkdir(parents=True)
        for i in range(40):
            pixels = torch.randint(0, 256, (3, 8, 8), generator=generator, dtype=torch.uint8)
            image: Image.Image = to_pil_image(pixels)
            image.save(folder / "images" / kind / f"{i}.png")
    return [f"dataset.root={folder}/images"]
