"""The extractors that ship with the package are the pinned ones, and they know their data."""

import hashlib
import os
from pathlib import Path

import pytest
import torch

import flowdiff.metrics.extractors
from experiments.extractors import __main__ as training
from flowdiff.data.digits import Digits
from flowdiff.data.mnist import MNIST, FashionMNIST
from flowdiff.errors import FlowdiffError
from flowdiff.metrics.extractors.extractor import SHA256, Extractor
from flowdiff.metrics.extractors.networks import MLP

FOLDER = Path(flowdiff.metrics.extractors.__file__).parent
ROOT = os.environ.get("FLOWDIFF_DATA", "data")


@pytest.mark.parametrize("name", SHA256)
def test_files_are_small_and_pinned(name):
    content = (FOLDER / f"{name}.safetensors").read_bytes()
    assert len(content) < 1_000_000
    assert hashlib.sha256(content).hexdigest() == SHA256[name]
    assert f"extractors.train dataset={'_'.join(name.split('_')[1:])}".encode() in content  # as it was called then


@pytest.mark.slow
@pytest.mark.parametrize(
    "data, least, features",
    [
        (Digits(), 0.985, 64),
        pytest.param(
            MNIST(ROOT),
            0.99,
            84,
            marks=pytest.mark.skipif(
                not (Path(ROOT) / "MNIST/raw").exists(), reason="FLOWDIFF_DATA does not hold MNIST"
            ),
        ),
        pytest.param(
            FashionMNIST(ROOT),
            0.88,
            84,
            marks=pytest.mark.skipif(
                not (Path(ROOT) / "FashionMNIST/raw").exists(), reason="FLOWDIFF_DATA does not hold Fashion-MNIST"
            ),
        ),
    ],
    ids=lambda value: value.name if hasattr(value, "name") else "",
)
def test_accuracy_on_test_images(data, least, features):
    k, labels = data.images("test")
    found, logits = Extractor(data.extractor)(data.levels_to_uint8(k))
    assert found.shape == (len(k), features) and found.dtype == torch.float32
    assert (logits.argmax(1) == labels).double().mean() >= least


def test_features_do_not_depend_on_the_batch():
    extractor = Extractor("mlp_digits")
    images = Digits().levels_to_uint8(Digits().images("test")[0][:20])
    torch.testing.assert_close(extractor(images, batch_size=7)[0], extractor.features(images))
    torch.testing.assert_close(extractor.network.head(extractor.features(images)), extractor.logits(images))


def test_a_damaged_file_is_refused(tmp_path):
    content = bytearray((FOLDER / "mlp_digits.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "mlp_digits.safetensors").write_bytes(content)
    with pytest.raises(FlowdiffError, match="sha256"):
        Extractor("mlp_digits", folder=tmp_path)
    with pytest.raises(FlowdiffError, match="missing"):
        Extractor("lenet_mnist", folder=tmp_path)


def test_only_bytes_are_taken():
    with pytest.raises(TypeError, match="uint8"):
        Extractor("mlp_digits")(torch.zeros(1, 1, 8, 8))


def test_the_training_command_learns():
    data = Digits()
    k, labels = data.images("train")
    torch.manual_seed(0)
    network = MLP()
    images = data.levels_to_uint8(k)
    before = training.accuracy(network, images, labels)
    training.fit(network, images, labels, epochs=10, seed=0)
    assert before < 0.3 and training.accuracy(network, images, labels) > 0.9
