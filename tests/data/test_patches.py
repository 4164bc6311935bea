"""Crops of the two photographs: real colours, and splits that share no pixel."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images

from flowdiff.data.patches import BANDS, LARGEST, Patches
from flowdiff.errors import ConfigError


class Places:
    """A stand-in for the photographs: every pixel holds its own place, column, row and number of the photograph."""

    def __init__(self):
        row, column = np.mgrid[:427, :640]
        high = column // 256 + 16 * (row // 256)
        self.images = [np.stack([column % 256, row % 256, high + 128 * n], -1).astype(np.uint8) for n in (0, 1)]


@pytest.mark.parametrize("size, stride", [(32, 6), (64, 9), (5, 3)])
def test_the_splits_share_no_pixel(size, stride, monkeypatch):
    monkeypatch.setattr("sklearn.datasets.load_sample_images", Places)
    data = Patches(size, stride)
    seen = {}
    for split in ("train", "val", "test"):
        k, labels = data.images(split)
        assert k.shape[1:] == (3, size, size) and labels.bincount().tolist() == [len(k) // 2] * 2
        assert torch.equal(k[:, 2, 0, 0] // 128, labels)  # the class is the photograph
        k = k.int()
        seen[split] = torch.zeros(1 << 24, dtype=torch.bool)
        seen[split][(k[:, 0] + 256 * k[:, 1] + 65536 * k[:, 2]).flatten()] = True
        if split == "train":  # each crop, then each once more as its mirror image
            assert torch.equal(k.chunk(2)[0].flip(-1), k.chunk(2)[1])
    assert int(sum(s.int() for s in seen.values()).max()) == 1
    # and few pixels are left out: less than a step at the edges of a band
    assert sum(int(s.sum()) for s in seen.values()) > 2 * (427 - stride) * (640 - 4 * stride)


def test_the_bands_are_all_columns():
    columns = sorted(band for bands in BANDS.values() for band in bands)
    assert columns[0][0] == 0 and columns[-1][1] == 640
    assert all(a[1] == b[0] for a, b in zip(columns, columns[1:], strict=False))


def test_crops_are_the_photographs_pixels_and_no_seed_changes_them():
    data, again = Patches(), Patches(seed=7)
    assert {s: len(data.images(s)[0]) for s in BANDS} == {"train": 17160, "val": 792, "test": 2244}
    assert all(torch.equal(a, b) for s in BANDS for a, b in zip(data.images(s), again.images(s), strict=True))
    flower = load_sample_images().images[1]
    k, labels = data.images("test")
    assert labels[1122] == 1 and data.class_names == ["china", "flower"] and data.levels == 256
    expected = flower[6 : 6 + 32, 512 + 12 : 512 + 12 + 32]  # second row, third column of the crops
    assert torch.equal(k[1122 + 17 + 2], torch.tensor(expected).permute(2, 0, 1))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"size": LARGEST + 1}, "size=65: must be a whole number from 2 to 64"),
        ({"size": 1}, "size=1: must be a whole number from 2"),
        ({"stride": 0}, "stride=0: must be a whole number"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ConfigError, match=message):
        Patches(**options)
