"""torch-fidelity's command line and torchmetrics on the folder that flowdiff.sample writes: our distance is theirs.

With the small extractor of digits in the place of Inception, whose weights are not here.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity.fidelity as command_line
from PIL import Image
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from flowdiff.commands.sample import sample
from flowdiff.data.digits import Digits
from flowdiff.metrics.extractors.extractor import Extractor
from flowdiff.metrics.frechet import frechet_distance, moments
from tests.helpers.configs import composed

pytestmark = pytest.mark.slow

NAME = "gray_digits"


class GrayDigits(FeatureExtractorBase):
    """The package's features of digits, for torch-fidelity's RGB images."""

    def __init__(self, name: str, features_list: list[str], **kwargs: object) -> None:
        super().__init__(name, features_list)
        self.network = Extractor("mlp_digits").network

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("features",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "features"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.network(images[:, :1])[0],)


class Features(nn.Module):
    """The same for torchmetrics."""

    num_features = 64

    def __init__(self) -> None:
        super().__init__()
        self.network = Extractor("mlp_digits").network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images[:, :1])[0]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """200 samples of the digits that ship with the package as they are written, and 300 real images as PNG files."""
    place = tmp_path_factory.mktemp("others")
    words = ["ckpt_path=digits", f"output_dir={place / 'samples'}", "num_samples=200", "class_label=balanced"]
    sample(composed("sample", *words, "sampler=heun", "num_steps=2"))
    (place / "real").mkdir()
    for i, image in enumerate(Digits().levels_to_uint8(Digits().images("train")[0][:300])):
        Image.fromarray(image[0].numpy()).save(place / "real" / f"{i:03d}.png")
    return place / "samples", place / "real"


@pytest.fixture
def alone(folders: tuple[Path, Path], tmp_path: Path) -> Path:
    """A folder of the images alone, as the guide makes it."""
    (tmp_path / "images").mkdir()
    for file in folders[0].glob("[0-9]*.png"):
        shutil.copy(file, tmp_path / "images")
    return tmp_path / "images"


def read(folder: Path) -> Tensor:
    """The PNG files of a folder, uint8 (N, 1, H, W)."""
    files = sorted(folder.glob("[0-9]*.png"))
    return torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in files])[:, None]


def features(folder: Path) -> Tensor:
    return Extractor("mlp_digits").features(read(folder))


@pytest.fixture
def fidelity(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, float]]:
    """What torch-fidelity's command says of two folders."""
    if NAME not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(NAME, GrayDigits)

    def run(first: Path, second: Path, *words: str) -> dict[str, float]:
        words = ("--cpu", "--json", "--no-cache", "--silent", "--save-cpu-ram", "--feature-extractor", NAME, *words)
        monkeypatch.setattr(sys, "argv", ["fidelity", "--input1", str(first), "--input2", str(second), *words])
        capsys.readouterr()
        command_line.main()
        out = capsys.readouterr().out
        return json.loads(out[out.index("{") :])

    return run


def test_torch_fidelity(folders: tuple[Path, Path], alone: Path, fidelity: Callable[..., dict[str, float]]) -> None:
    ours = frechet_distance(*(moments(features(folder)) for folder in (alone, folders[1])))
    found = fidelity(alone, folders[1], "--fid", "--feature-layer-fid", "features")
    assert found["frechet_inception_distance"] == pytest.approx(ours, rel=1e-3) and ours > 0.1


def test_the_grid_is_no_image(folders: tuple[Path, Path], fidelity: Callable[..., dict[str, float]]) -> None:
    """What the guide says: torch-fidelity stops, it doesn't count it."""
    assert (folders[0] / "grid.png").is_file()
    with pytest.raises(RuntimeError, match="size|shape"):
        fidelity(*folders, "--fid", "--feature-layer-fid", "features")


def test_torchmetrics(folders: tuple[Path, Path], alone: Path, fidelity: Callable[..., dict[str, float]]) -> None:
    """Its FID on the PNG files and on samples.npz, its KID beside torch-fidelity's: other subsets, near each other."""
    samples, real = read(alone), read(folders[1])
    stored = torch.from_numpy(np.load(folders[0] / "samples.npz")["images"]).permute(0, 3, 1, 2)
    assert torch.equal(stored, samples)
    fid = FrechetInceptionDistance(feature=Features())
    kid = KernelInceptionDistance(feature=Features(), subsets=50, subset_size=100)
    for metric in (fid, kid):
        metric.update(real.expand(-1, 3, -1, -1), real=True)
        metric.update(samples.expand(-1, 3, -1, -1), real=False)
    ours = frechet_distance(*(moments(features(folder)) for folder in (alone, folders[1])))
    assert fid.compute().item() == pytest.approx(ours, rel=1e-3)
    words = ("--kid", "--feature-layer-kid", "features", "--kid-subsets", "50", "--kid-subset-size", "100")
    theirs = fidelity(alone, folders[1], *words)["kernel_inception_distance_mean"]
    assert kid.compute()[0].item() == pytest.approx(theirs, rel=0.2) and theirs > 0
