"""Our FID is torch-fidelity's: the same number as its own command line on the same PNG files."""

import json

import pytest
import torch
import torch_fidelity
from PIL import Image
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from flowdiff.data.base import ImageData
from flowdiff.data.digits import Digits
from flowdiff.data.patches import Patches
from flowdiff.errors import ConfigError, FlowdiffError
from flowdiff.metrics.base import Evaluand, measure
from flowdiff.metrics.fidelity import FID, KID, InceptionScore, PrecisionRecall, cache_name, rgb
from flowdiff.metrics.frechet import FrechetDistance
from flowdiff.samplers.batched import Drawn
from tests.helpers import forked
from tests.helpers.command_lines import environment


class Blank(FeatureExtractorInceptionV3):
    """Inception as torch-fidelity builds it, without reading weights."""

    def load_state_dict(self, *args, **kwargs):
        return None


@pytest.fixture(scope="session")
def inception(tmp_path_factory):
    """A file of random Inception weights whose activations keep their size from layer to layer."""
    folder = tmp_path_factory.mktemp("inception")
    torch.save({}, folder / "none.pth")
    network = Blank("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(folder / "none.pth"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
    torch.save(network.state_dict(), folder / "random.pth")
    return str(folder / "random.pth")


class TwoTones(ImageData):
    """Gray 12×12 images: noise around a tone; 8 for training, 6 for the rest."""

    def __init__(self):
        super().__init__("two_tones", (1, 12, 12), 0, 256)

    def load(self):
        generator = torch.Generator().manual_seed(0)
        k = torch.randint(0, 180, (20, 1, 12, 12), generator=generator).to(torch.uint8)
        splits = {"train": k[:8], "val": k[8:14], "test": k[14:]}
        return {name: (rows, torch.zeros(len(rows), dtype=torch.long)) for name, rows in splits.items()}


class Bright:
    """Samples that are brighter than the data."""

    num_classes = 0

    def __init__(self, channels=1):
        self.channels = channels

    def __call__(self, n, labels, seed):
        return Drawn(torch.rand(n, self.channels, 12, 12, generator=torch.Generator().manual_seed(seed)))


def write_png(images, folder):
    folder.mkdir()
    for i, image in enumerate(images):
        pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
        Image.fromarray(pixels.numpy()).save(folder / f"{i:03d}.png")


@pytest.mark.slow
@pytest.mark.parametrize("data", [TwoTones(), Patches(12, 300)], ids=["gray", "colour"])
def test_fid_is_that_of_torch_fidelitys_command_line(data, inception, tmp_path):
    """On folders of PNG files, gray ones as they are; to 1e-3 of the value, in float32 and other sums over batches."""
    model = Evaluand(None, data, sample=Bright(data.shape[0]), seed=1)
    model.denoiser = Bright()
    metric = FID(num_samples=7, weights_path=inception, real=False, cache_root=str(tmp_path / "cache"), batch_size=4)
    results, _ = measure({"fid": metric}, model)
    ours = results["fid"]
    assert ours.n == 7 and ours.conditions["n_reference"] == len(data.images("train")[0])
    assert "fewer than" in ours.conditions["note"]

    write_png(model.sample_images(7)[0], tmp_path / "samples")
    with Image.open(tmp_path / "samples" / "000.png") as picture:
        assert picture.mode == {1: "L", 3: "RGB"}[data.shape[0]]
    write_png(data.levels_to_uint8(data.images("train")[0]), tmp_path / "train")
    words = ["--fid", "--cpu", "--json", "--no-cache", "--silent", "--batch-size", "4", "--save-cpu-ram"]
    words += ["--feature-extractor", "inception-v3-compat", "--feature-extractor-weights-path", inception]
    words += ["--input1", str(tmp_path / "samples"), "--input2", str(tmp_path / "train")]
    outputs = (tmp_path / "out", tmp_path / "err")
    run = forked.run("torch_fidelity.fidelity", words, tmp_path, environment(), outputs, timeout=600)
    assert run.returncode == 0, run.stderr
    theirs = json.loads(run.stdout[run.stdout.index("{") :])["frechet_inception_distance"]
    assert theirs > 1e-3  # the two folders differ, and the random network sees it
    assert ours.value == pytest.approx(theirs, rel=1e-3)
    assert list((tmp_path / "cache").glob("*stat-fid-2048.pt"))  # the training split is kept for the next time


def test_small_extractors_through_torch_fidelity(tmp_path):
    data = Digits()

    def sample(n, labels, seed):
        return Drawn(data.to_centres(data.images("train")[0][:n]))

    class Unconditional:
        num_classes = 0

    model = Evaluand(Unconditional(), data, sample=sample)
    options = {"num_samples": 200, "extractor": "small", "cache_root": str(tmp_path)}
    metrics = {
        "fd": FrechetDistance(num_samples=200),
        "fid": FID(**options),
        "kid": KID(**options),
        "isc": InceptionScore(**options),
        "prc": PrecisionRecall(**options),
    }
    results, skipped = measure(metrics, model)
    assert skipped == {}
    ours, theirs = results["fd_mlp_digits"].value, results["fid_mlp_digits"].value
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert results["fid_mlp_digits/real"].value == pytest.approx(results["fd_mlp_digits/real"].value, rel=1e-3)
    assert abs(results["kid_mlp_digits"].value) < 0.05
    assert 5 < results["isc_mlp_digits"].value <= 10
    assert results["precision_mlp_digits"].value == 1  # samples are training images
    assert results["precision_mlp_digits/real"].value > 0.7
    assert all(result.n == 200 for result in results.values())


def test_gray_becomes_rgb_by_repetition():
    gray = torch.arange(8, dtype=torch.uint8).reshape(2, 1, 2, 2)
    assert torch.equal(rgb(gray), torch.cat([gray] * 3, 1))
    colour = torch.zeros(2, 3, 2, 2, dtype=torch.uint8)
    assert rgb(colour) is colour


def test_the_cache_name_changes_with_everything_it_stands_for():
    images = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    other = images.clone()
    other[3, 0, 1, 1] = 1
    names = [
        cache_name(images, "train", "rgb", "a"),
        cache_name(other, "train", "rgb", "a"),
        cache_name(images.reshape(2, 2, 2, 2), "train", "rgb", "a"),
        cache_name(images, "test", "rgb", "a"),
        cache_name(images, "train", "gray", "a"),
        cache_name(images, "train", "rgb", "b"),
    ]
    assert len(set(names)) == 6
    assert cache_name(images.clone(), "train", "rgb", "a") == names[0]


def test_mistakes(tmp_path):
    with pytest.raises(ConfigError, match=r"weights_path=.*nowhere"):
        FID(weights_path=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"extractor=vgg: must be"):
        KID(extractor="vgg")
    with pytest.raises(ConfigError, match=r"num_samples=3: must be a whole number from 5"):
        PrecisionRecall(num_samples=3)
    torch.save({"wrong": torch.zeros(1)}, tmp_path / "wrong.pth")
    model = Evaluand(Bright(), TwoTones(), sample=Bright())
    with pytest.raises(ConfigError, match="does not hold Inception's weights"):
        FID(num_samples=6, weights_path=str(tmp_path / "wrong.pth"))(model)
    assert "no small extractor" in measure({"fid": FID(extractor="small")}, model)[1]["fid"]


def test_no_network_is_one_clear_line(monkeypatch):
    from urllib.error import URLError

    def offline(**options):
        raise URLError("no route")

    monkeypatch.setattr(torch_fidelity, "calculate_metrics", offline)
    with pytest.raises(FlowdiffError, match=r"metrics\.fid\.weights_path=null: .*no route.*weights_path") as caught:
        FID(num_samples=6)(Evaluand(Bright(), TwoTones(), sample=Bright()))
    assert "\n" not in str(caught.value)
