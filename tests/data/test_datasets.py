"""Datasets: fixed disjoint splits, every YAML composes, and mistakes are one clear line."""

import math
import os
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from sklearn.datasets import load_digits

from flowdiff.data.base import ImageData
from flowdiff.data.cifar10 import CIFAR10
from flowdiff.data.digits import Digits
from flowdiff.data.images import ImageFolder
from flowdiff.data.mnist import MNIST, FashionMNIST
from flowdiff.data.toy import DISTRIBUTIONS, Toy
from flowdiff.errors import ConfigError, FlowdiffError

CONF = Path(__file__).parents[2] / "conf"
ROOT = os.environ.get("FLOWDIFF_DATA", "data")
needs_mnist = pytest.mark.skipif(not (Path(ROOT) / "MNIST/raw").exists(), reason="FLOWDIFF_DATA does not hold MNIST")


def write_images(folder, classes=("cat", "dog"), each=10, size=(8, 6), mode="RGB"):
    rng = np.random.RandomState(0)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
            pixels = rng.randint(0, 256, shape).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:02d}.png")
    return folder


@pytest.mark.parametrize("file", sorted((CONF / "dataset").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_yaml_makes_a_dataset(file, tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWDIFF_DATA", str(tmp_path))
    config = OmegaConf.merge({"seed": 5}, {"dataset": OmegaConf.load(file)})
    if file.stem == "images":
        config.dataset.root = str(write_images(tmp_path / "folder"))
    data = hydra.utils.instantiate(config.dataset, _convert_="all")
    assert isinstance(data, ImageData)
    assert data.seed == 5 and data.batch_size >= 1 and isinstance(data.shape, tuple)
    assert (data.levels is None) == (file.stem == "toy")
    assert len(data.class_names) == data.num_classes


def test_digits_are_split_into_disjoint_stratified_parts():
    data, again = Digits(seed=0), Digits(seed=9)
    counts = {"train": 1257, "val": 180, "test": 360}
    rows: list[bytes] = []
    for split, n in counts.items():
        k, labels = data.images(split)
        assert k.shape == (n, 1, 8, 8) and k.dtype == torch.uint8 and labels.dtype == torch.int64
        expected = torch.from_numpy(np.bincount(load_digits().target)) * n / 1797
        assert (labels.bincount(minlength=10) - expected).abs().max() <= 1
        assert torch.equal(k, again.images(split)[0]) and torch.equal(labels, again.images(split)[1])
        rows += [image.numpy().tobytes() for image in k]
    assert int(data.images("train")[0].max()) == 16
    # scikit-learn's 1,797 images are all different, so disjoint splits are 1,797 different images
    assert len(rows) == len(set(rows)) == 1797


@needs_mnist
@pytest.mark.parametrize("cls", (MNIST, FashionMNIST))
def test_mnist_is_split_into_disjoint_parts(cls):
    data = cls(ROOT)
    shapes = {split: tuple(data.images(split)[0].shape) for split in ("train", "val", "test")}
    assert shapes == {"train": (55000, 1, 28, 28), "val": (5000, 1, 28, 28), "test": (10000, 1, 28, 28)}
    source = data._open(train=True)
    rows = torch.cat([data.images("train")[0], data.images("val")[0]]).sum((1, 2, 3)).sort().values
    assert torch.equal(rows, source.data.unsqueeze(1).sum((1, 2, 3)).sort().values)
    labels = torch.cat([data.images("train")[1], data.images("val")[1]])
    assert torch.equal(labels.bincount(), source.targets.bincount())
    assert torch.equal(cls(ROOT).images("val")[0], data.images("val")[0])


@pytest.mark.parametrize(
    "cls, what", [(MNIST, "MNIST/raw"), (FashionMNIST, "FashionMNIST/raw"), (CIFAR10, "cifar-10-batches-py")]
)
def test_a_missing_folder_is_named_with_the_way_out(cls, what, tmp_path):
    with pytest.raises(FlowdiffError) as caught:
        cls(str(tmp_path / "nowhere")).images("train")
    message = str(caught.value)
    assert str(tmp_path / "nowhere") in message and what in message
    assert "download=true" in message and "\n" not in message


def test_incomplete_files_are_an_error_too(tmp_path):
    (tmp_path / "MNIST/raw").mkdir(parents=True)
    with pytest.raises(FlowdiffError, match="download=true"):
        MNIST(str(tmp_path)).images("train")


def test_cifar10_reads_torchvisions_layout(tmp_path):
    import pickle

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.RandomState(0)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for name in names:
        batch = {"data": rng.randint(0, 256, (1200, 3072)).astype(np.uint8), "labels": [3] * 1200}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a"] * 10}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
        data = CIFAR10(str(tmp_path))
        data.images("train")
    assert data.images("train")[0].shape == (1000, 3, 32, 32) and data.images("val")[0].shape[0] == 5000
    first = pickle.loads((folder / "test_batch").read_bytes())["data"][0].reshape(3, 32, 32)
    assert torch.equal(data.images("test")[0][0], torch.from_numpy(first))


# -- folders of images ------------------------------------------------------------------------------------------


def test_a_folder_of_images_with_classes(tmp_path):
    data = ImageFolder(str(write_images(tmp_path)))
    assert data.shape == (3, 6, 8) and data.class_names == ["cat", "dog"] and data.num_classes == 2
    sizes = {split: len(data.images(split)[0]) for split in ("train", "val", "test")}
    assert sizes == {"train": 16, "val": 2, "test": 2}
    first = torch.from_numpy(np.array(Image.open(tmp_path / "dog" / "03.png"))).permute(2, 0, 1)
    found = [
        int(label)
        for split in sizes
        for image, label in zip(*data.images(split), strict=True)
        if torch.equal(image, first)
    ]
    assert found == [1]
    rows = [image.numpy().tobytes() for split in sizes for image in data.images(split)[0]]
    assert len(set(rows)) == 20


def test_a_flat_gray_folder_has_no_classes(tmp_path):
    write_images(tmp_path, classes=(".",), each=12, mode="L")
    data = ImageFolder(str(tmp_path), channels=1)
    assert data.shape == (1, 6, 8) and data.num_classes == 0 and len(data.images("train")[0]) == 10


def test_images_of_different_sizes(tmp_path):
    write_images(tmp_path)
    Image.new("RGB", (9, 6)).save(tmp_path / "dog" / "odd.png")
    with pytest.raises(FlowdiffError, match=r"odd\.png: is 9×6, but .*00\.png is 8×6"):
        ImageFolder(str(tmp_path)).images("train")


def test_a_nan_pixel_names_the_file(tmp_path):
    write_images(tmp_path)
    pixels = np.full((6, 8), 0.5, np.float32)
    Image.fromarray(pixels).save(tmp_path / "dog" / "fine.tif")
    ImageFolder(str(tmp_path)).images("train")
    pixels[2, 3] = np.nan
    Image.fromarray(pixels).save(tmp_path / "dog" / "hole.tif")
    with pytest.raises(FlowdiffError, match=r"hole\.tif: a pixel is NaN or inf"):
        ImageFolder(str(tmp_path)).images("train")


def test_a_broken_file_is_named(tmp_path):
    write_images(tmp_path)
    content = (tmp_path / "dog" / "03.png").read_bytes()
    (tmp_path / "dog" / "cut.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(FlowdiffError, match=r"cut\.png: not an image"):
        ImageFolder(str(tmp_path)).images("train")
    (tmp_path / "dog" / "cut.png").write_text("hello")
    with pytest.raises(FlowdiffError, match=r"cut\.png: not an image"):
        ImageFolder(str(tmp_path)).images("train")


def test_missing_empty_and_small_folders(tmp_path):
    with pytest.raises(FlowdiffError, match=r"root=.*nowhere: there is no folder"):
        ImageFolder(str(tmp_path / "nowhere"))
    with pytest.raises(FlowdiffError, match="no images"):
        ImageFolder(str(tmp_path))
    write_images(tmp_path, each=2)
    with pytest.raises(FlowdiffError, match="only 4 images.*at least 10"):
        ImageFolder(str(tmp_path))


def test_images_beside_class_folders(tmp_path):
    write_images(tmp_path)
    Image.new("RGB", (8, 6)).save(tmp_path / "stray.png")
    with pytest.raises(FlowdiffError, match=r"stray\.png: lies beside the class folders cat, dog"):
        ImageFolder(str(tmp_path))


# -- toy data ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_toy_points_fit_the_unit_range_and_their_density(name):
    data = Toy(name, num_train=4000, num_test=2000, conditional=True)
    x, component = data.images("train")
    assert x.shape == (4000, 2) and x.dtype == torch.float32 and data.levels is None
    assert x.abs().max() < 1.6 and 0.3 < x.std() < 0.8
    assert component.unique().tolist() == list(range(data.num_classes))
    assert not torch.equal(x[:2000], data.images("test")[0])
    # the density integrates to 1 …
    edges = torch.linspace(-1.75, 1.75, 141, dtype=torch.float64)
    grid = torch.cartesian_prod(*[(edges[1:] + edges[:-1]) / 2] * 2)
    mass = (data.log_prob(grid).exp() * (3.5 / 140) ** 2).reshape(7, 20, 7, 20).sum((1, 3))
    assert abs(float(mass.sum()) - 1) < 0.01
    # … and is that of the points: the mass of each cell of a coarse grid is the share of the points in it
    cell = ((x + 1.75) * 2).long()
    share = (cell[:, 0] * 7 + cell[:, 1]).bincount(minlength=49).reshape(7, 7) / 4000
    assert (share - mass).abs().max() < 5 * math.sqrt(0.25 / 4000)
    assert (share - mass).abs().sum() < 0.15


def test_the_density_of_eight_gaussians_in_numpy():
    data = Toy("eight_gaussians")
    x = data.images("test")[0][:50].double().numpy()
    angle = np.arange(8) * np.pi / 4
    centres = 0.8 * np.stack([np.cos(angle), np.sin(angle)], 1)
    square = ((x[:, None] - centres) ** 2).sum(-1)
    expected = np.log(np.exp(-square / 2 / 0.08**2).mean(1) / (2 * np.pi * 0.08**2))
    np.testing.assert_allclose(data.log_prob(torch.from_numpy(x)).numpy(), expected, atol=1e-9)


def test_toy_points_do_not_depend_on_the_seed():
    assert torch.equal(Toy(seed=0).images("test")[0], Toy(seed=1).images("test")[0])
    assert Toy().num_classes == 0 and Toy().images("train")[1].unique().tolist() == [0]


@pytest.mark.parametrize(
    "options, key",
    [
        ({"name": "three_moons"}, "name=three_moons: must be one of two_moons"),
        ({"noise": 0.0}, "noise=0.0: must be a number above 0"),
        ({"num_train": 0}, "num_train=0: must be"),
        ({"batch_size": 0}, "batch_size=0: must be"),
    ],
)
def test_toy_mistakes(options, key):
    with pytest.raises(ConfigError, match=key):
        Toy(**options)


# -- the base class ---------------------------------------------------------------------------------------------


def one_split(k, labels=None, **options):
    class Given(ImageData):
        def load(self):
            y = torch.zeros(len(k), dtype=torch.long) if labels is None else labels
            return dict.fromkeys(("train", "val", "test"), (k, y))

    return Given("given", **({"shape": (1, 2, 2), "num_classes": 0, "levels": 4} | options))


@pytest.mark.parametrize(
    "data, message",
    [
        (one_split(torch.zeros(0, 1, 2, 2, dtype=torch.uint8)), "the train split is empty"),
        (one_split(torch.zeros(3, 1, 2, 3, dtype=torch.uint8)), r"shape \(1, 2, 3\)"),
        (one_split(torch.full((3, 1, 2, 2), 4, dtype=torch.uint8)), r"a pixel is 4, but levels=4"),
        (one_split(torch.tensor([[0.0, 0], [0, math.nan]]), shape=(2,), levels=None), "sample 1 .*NaN"),
        (one_split(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 3]), num_classes=3), "0..2"),
    ],
)
def test_wrong_data_are_refused(data, message):
    with pytest.raises(FlowdiffError, match=message):
        data.images("train")


def test_conversions_of_the_module():
    data = Digits()
    k = data.images("test")[0]
    x = data.to_model(k, torch.Generator().manual_seed(0))
    assert torch.equal(data.to_uint8(x), data.levels_to_uint8(k))
    assert torch.equal(data.to_uint8(data.to_centres(k)), data.levels_to_uint8(k))
    assert data.to_uint8(x).shape == k.shape and int(data.to_uint8(x).max()) == 255
    with pytest.raises(FlowdiffError, match="points are not images"):
        Toy().to_uint8(torch.zeros(1, 2))
    with pytest.raises(ConfigError, match="split=dev"):
        data.images("dev")


def test_loaders_of_the_module():
    data = Digits(batch_size=100, seed=2)
    k, labels = next(iter(data.batches("train")))
    assert k.shape == (100, 1, 8, 8) and k.dtype == torch.uint8 and labels.shape == (100,)
    again = next(iter(Digits(batch_size=100, seed=2).batches("train")))
    assert torch.equal(again[0], k)
    assert not torch.equal(next(iter(Digits(batch_size=100, seed=3).batches("train")))[0], k)
    assert sum(len(batch) for _, batch in data.batches("val")) == 180
    assert torch.equal(torch.cat([batch for batch, _ in data.batches("test")]), data.images("test")[0])
