"""Latents of a data set: encoded once, resumed, drawn anew."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flowdiff.data import latents
from flowdiff.data.digits import Digits
from flowdiff.data.first_stage import AutoencoderKL, Identity
from flowdiff.data.latents import LatentData, apply_first_stage
from flowdiff.data.toy import Toy
from flowdiff.errors import ConfigError
from tests.helpers.autoencoders import saved


class Counting(AutoencoderKL):
    """Remembers how many images it has encoded, and may be interrupted after some."""

    encoded, breaks_at = 0, None

    def encode(self, x: Tensor) -> Tensor:
        if self.breaks_at is not None and self.encoded >= self.breaks_at:
            raise KeyboardInterrupt
        self.encoded += len(x)
        return super().encode(x)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latents, "ROWS", 100)


@pytest.fixture
def autoencoder(tmp_path: Path) -> Counting:
    return Counting(str(saved(tmp_path / "autoencoder")), cache=str(tmp_path / "cache"), device="cpu")


def shards(tmp_path: Path, split: str = "val") -> list[Path]:
    return sorted((tmp_path / "cache" / "latents").glob(f"digits-{split}-*/*.safetensors"))


def test_a_split_is_encoded_once_and_read_back(tmp_path: Path, autoencoder: Counting, small_shards: None) -> None:
    data = LatentData(Digits(), autoencoder)
    rows, labels = data.encoded("val")
    assert (autoencoder.encoded, len(rows), rows.shape) == (180, 180, (180, 2, 2, 4, 4))
    k, y = Digits().images("val")
    torch.testing.assert_close(rows[:], AutoencoderKL.encode(autoencoder, data.pixels.to_centres(k)))
    order = torch.randperm(180, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rows[order], rows[:][order]) and torch.equal(labels, y)
    again, _ = LatentData(Digits(), autoencoder).encoded("val")
    assert autoencoder.encoded == 180 and torch.equal(again[:], rows[:])


def test_an_interrupted_encoding_goes_on(tmp_path: Path, autoencoder: Counting, small_shards: None) -> None:
    autoencoder.breaks_at = 100
    with pytest.raises(KeyboardInterrupt):
        LatentData(Digits(), autoencoder).encoded("val")
    assert len(shards(tmp_path)) == 1
    autoencoder.breaks_at = None
    rows, _ = LatentData(Digits(), autoencoder).encoded("val")
    assert (autoencoder.encoded, len(rows)) == (180, 180)


def test_a_shard_that_is_cut_off_is_made_again(tmp_path: Path, autoencoder: Counting, small_shards: None) -> None:
    whole = LatentData(Digits(), autoencoder).encoded("val")[0][:]
    last = shards(tmp_path)[-1]
    last.write_bytes(last.read_bytes()[:2000])
    assert torch.equal(LatentData(Digits(), autoencoder).encoded("val")[0][:], whole)
    assert autoencoder.encoded == 180 + 80


def test_other_data_and_other_autoencoders_have_caches_of_their_own(tmp_path: Path, autoencoder: Counting) -> None:
    first = LatentData(Digits(), autoencoder).encoded("val")[0][:]
    other = AutoencoderKL(str(saved(tmp_path / "other", seed=1)), cache=str(tmp_path / "cache"), device="cpu")
    assert not torch.equal(LatentData(Digits(), other).encoded("val")[0][:], first)
    changed = Digits()
    changed.images("val")[0][0, 0, 0, 0] += 1
    assert not torch.equal(LatentData(changed, autoencoder).encoded("val")[0][:], first)
    LatentData(Digits(), autoencoder).encoded("test")
    assert [len(shards(tmp_path, split)) for split in ("val", "test")] == [3, 1]


def test_two_processes_do_not_encode_twice(tmp_path: Path, autoencoder: Counting, small_shards: None) -> None:
    """Locks of files hold between threads, too: each opens the file for itself."""
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: LatentData(Digits(), autoencoder).encoded("val")[0][:], range(2)))
    assert autoencoder.encoded == 180
    assert torch.equal(*found)


def test_few_images_are_floats_at_once(tmp_path: Path, autoencoder: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded: the rows that pass through at once are counted in pixels."""
    monkeypatch.setattr(latents, "PIXELS", 10 * 64)
    largest: list[int] = []
    monkeypatch.setattr(Counting, "encode", lambda self, x: (largest.append(len(x)), AutoencoderKL.encode(self, x))[1])
    LatentData(Digits(), autoencoder).encoded("val")
    assert max(largest) == 10 and sum(largest) == 180


def test_every_epoch_draws_from_the_posteriors_anew(autoencoder: Counting) -> None:
    data = LatentData(Digits(), autoencoder)
    k, _ = next(iter(data.batches("train")))
    draws = torch.stack([data.to_model(k) for _ in range(400)])
    assert not torch.equal(draws[0], draws[1])
    mean, std = k.unbind(1)
    assert ((draws.mean(0) - mean).abs() < 5 * std / 20).all()
    torch.testing.assert_close(draws.std(0), std, rtol=0.25, atol=0)
    assert torch.equal(data.to_centres(k), mean)


def test_statistics_are_those_of_the_drawn_latents(autoencoder: Counting) -> None:
    data = LatentData(Digits(), autoencoder)
    rows, labels = data.encoded("train")
    mean, std = rows[:].flatten(2).double().unbind(1)
    found = data.statistics(10)
    expected = torch.stack([mean[labels == c].mean(0) for c in range(10)])
    torch.testing.assert_close(found.class_means[:-1].double(), expected, atol=0.05, rtol=0.05)
    total = (mean - expected[labels]).square().mean(0).sum() + std.square().mean(0).sum()
    torch.testing.assert_close(found.eigenvalues.double().sum(), total, rtol=0.02, atol=0)


def test_images_stay_images_for_the_metrics(autoencoder: Counting) -> None:
    pixels = Digits()
    data = LatentData(pixels, autoencoder)
    assert (data.shape, data.levels, data.has_images, data.extractor) == ((2, 4, 4), None, True, "mlp_digits")
    k, _ = data.images("test")
    assert torch.equal(k, pixels.images("test")[0])
    assert torch.equal(data.levels_to_uint8(k), pixels.levels_to_uint8(k))
    z = data.to_centres(data.encoded("test")[0][:3])
    assert data.to_uint8(z).shape == (3, 1, 8, 8)
    assert torch.equal(data.to_uint8(z), pixels.to_uint8(autoencoder.decode(z)))


def test_points_have_no_latents(autoencoder: Counting) -> None:
    points = Toy(num_train=100, num_test=20)
    assert apply_first_stage(Identity(), points) is points
    with pytest.raises(ConfigError, match="first_stage=autoencoder_kl"):
        apply_first_stage(autoencoder, points)
