"""Colour from files to grids: CIFAR-10's own layout, written from crops of photographs, training, sampling."""

import hashlib
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.datasets import CIFAR10 as Torchvision

from flowdiff.commands.sample import sample
from flowdiff.data.base import ImageData
from flowdiff.data.cifar10 import CIFAR10
from flowdiff.data.patches import Patches
from flowdiff.data.statistics import DataStatistics
from flowdiff.errors import FlowdiffError
from flowdiff.evaluation.pictures import image_grid
from tests.helpers.command_lines import BARE, SMALL
from tests.helpers.configs import composed
from tests.helpers.runs import train

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("colour")]

STEPS = (
    "precondition=gaussian",
    "trainer.max_steps=2",
    "trainer.limit_val_batches=1",
    "lr=1e-5",
    "warmup_steps=0",
    "dataset.batch_size=32",
)
LITTLE = [word for word in SMALL if not word.startswith(("flow.", "dataset.", "warmup_steps"))]


def write_cifar10(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Six batches of 1,100 crops in CIFAR-10's binary layout; even classes are orange (petals), odd ones blue (sky).

    torchvision compares checksums, and is told those of these files.
    """
    folder, rng = root / "cifar-10-batches-py", np.random.RandomState(0)
    folder.mkdir()
    sky, flower = load_sample_images().images
    regions = (flower[120:280, 180:370], sky[:96, :360])
    sums = {}
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
        labels = rng.randint(0, 10, 1100).tolist()
        corners = zip(rng.randint(0, 96 - 32, 1100), rng.randint(0, 190 - 32, 1100), labels, strict=True)
        crops = [regions[c % 2][y : y + 32, x : x + 32] for y, x, c in corners]
        planes = np.stack(crops).transpose(0, 3, 1, 2).reshape(-1, 3072)  # all red, then all green, then all blue
        batch = {"data": planes, "labels": labels} if name != "batches.meta" else {}
        content = pickle.dumps(batch or {"label_names": [str(c) for c in range(10)]})
        (folder / name).write_bytes(content)
        sums[name] = hashlib.md5(content).hexdigest()
    patch.setattr(Torchvision, "train_list", [[f"data_batch_{i}", sums[f"data_batch_{i}"]] for i in range(1, 6)])
    patch.setattr(Torchvision, "test_list", [["test_batch", sums["test_batch"]]])
    patch.setattr(Torchvision, "meta", Torchvision.meta | {"md5": sums["batches.meta"]})


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The root of a small CIFAR-10, whose eigensystem of 3,072 dimensions is measured once for all tests."""
    root = tmp_path_factory.mktemp("cifar10")
    measured: dict[int, DataStatistics] = {}
    measure = DataStatistics.from_data

    def once(x: Tensor, labels: Tensor | None, num_classes: int, noise_variance: float) -> DataStatistics:
        if num_classes not in measured:
            measured[num_classes] = measure(x, labels, num_classes, noise_variance)
        return measured[num_classes]

    with pytest.MonkeyPatch.context() as patch:
        write_cifar10(root, patch)
        patch.setattr(DataStatistics, "from_data", once)
        yield root


def run(folder: Path, *words: str) -> Path:
    """A training of two steps; its last checkpoint."""
    train(composed("config", *LITTLE, *BARE, *STEPS, *words, f"run_dir={folder}"))
    return folder / "checkpoints" / "last.ckpt"


def check_samples(folder: Path, ckpt: Path, data: ImageData, n: int) -> None:
    """Draw n images of the classes 0 and 1, and compare the files with each other and their colours with the data's.

    After two small steps a model is still its whitening: with precondition=gaussian samples have the data's moments.
    """
    words = (f"num_samples={n}", "class_label=[0,1]", "sampler=ancestral", "num_steps=10", "tile=32")
    sample(composed("sample", f"ckpt_path={ckpt}", *words, f"output_dir={folder}"))
    found = np.load(folder / "samples.npz")
    images, labels = found["images"], found["labels"]
    assert images.shape == (n, *data.shape[1:], 3)
    assert np.array_equal(np.asarray(Image.open(folder / "000005.png")), images[5])
    with Image.open(folder / "grid.png") as grid:
        assert grid.mode == "RGB"
        assert np.array_equal(np.asarray(grid), image_grid(torch.tensor(images).permute(0, 3, 1, 2)).permute(1, 2, 0))
    k, of = data.images("train")
    variances = []
    for c in (0, 1):
        ours, theirs = images[labels == c] / 255, k[of == c].permute(0, 2, 3, 1).numpy() / 255
        assert np.abs(ours.mean((0, 1, 2)) - theirs.mean((0, 1, 2))).max() < 0.12
        assert np.corrcoef(ours[:, :, 1:].ravel(), ours[:, :, :-1].ravel())[0, 1] > 0.9  # noise has 0
        variances.append((ours.var((0, 1, 2)), theirs.var((0, 1, 2))))
    within = np.sqrt(np.mean(variances, 0))  # the whitening has one covariance for all classes
    assert np.abs(within[0] / within[1] - 1).max() < 0.4


@pytest.mark.parametrize(
    "words",
    [
        ("flow.n_flows=1", "flow.width=8"),  # the experiment's own: flow=glow
        ("flow=transformer", "flow.n_flows=2", "flow.width=16", "flow.depth=1"),
    ],
    ids=["glow", "transformer"],
)
def test_cifar10_trains_and_samples_in_the_datas_colours(words: tuple[str, ...], cifar10: Path, tmp_path: Path) -> None:
    ckpt = run(tmp_path / "run", "experiment=cifar10", f"dataset.root={cifar10}", *words)
    flow = torch.load(ckpt, weights_only=True)["flowdiff"]["config"]["flow"]["_target_"]
    assert flow.rpartition(".")[2] == ("GlowFlow" if "flow=transformer" not in words else "TransformerFlow")
    check_samples(tmp_path / "out", ckpt, CIFAR10(str(cifar10)), 32)


def test_the_guides_linear_flow_on_cifar10(cifar10: Path, tmp_path: Path, config: Callable) -> None:
    words = ("experiment=guide_cifar10", f"dataset.root={cifar10}")
    flow = config(*words, tiny=False).flow
    assert (flow.data_dim, flow.n_flows, flow._target_.rpartition(".")[2]) == (3072, 5, "LinearFlow")
    # one layer of the five, and no checkpoint: they would be gigabytes
    words = (*words, "flow.n_flows=1", "trainer.max_steps=1", "callbacks.checkpoints=null", f"run_dir={tmp_path}/run")
    result = train(composed("config", *[w for w in LITTLE if "checkpoints" not in w], *BARE, *STEPS, *words))
    assert result["step"] == 1 and np.isfinite(result["validation"]["val/loss"])


def test_files_that_are_not_cifar10s_are_refused(cifar10: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Torchvision, "test_list", [["test_batch", "0" * 32]])
        with pytest.raises(FlowdiffError, match="cifar-10-batches-py, complete and readable, not found") as caught:
            CIFAR10(str(cifar10)).images("train")
    assert "\n" not in str(caught.value)


def test_patches_train_and_sample_in_the_photographs_colours(tmp_path: Path) -> None:
    words = ("experiment=patches", "dataset.size=8", "dataset.stride=9", "flow.n_flows=1", "flow.width=8")
    ckpt = run(tmp_path / "run", *words)
    check_samples(tmp_path / "out", ckpt, Patches(8, 9), 64)
