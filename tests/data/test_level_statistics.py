"""Sums over blocks of integers are the moments and histograms of all values at once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flowdiff.bijections.marginals import Marginals
from flowdiff.data import base, level_statistics, statistics
from flowdiff.data.base import ImageData, Split
from flowdiff.data.level_statistics import measure_levels
from flowdiff.data.quantise import centres
from flowdiff.data.statistics import DataStatistics
from flowdiff.errors import FlowdiffError

SHAPE = (2, 3, 2)


def draw(n: int, levels: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Levels with a different mean and spread in each coordinate, and labels of which 1 is never used."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(SHAPE, generator=generator) * levels
    k = (torch.rand(n, *SHAPE, generator=generator) * spread).clamp(max=levels - 1).to(torch.uint8)
    labels = torch.randint(0, 2, (n,), generator=generator) * 2
    k[:, 0, 0, 0] = levels - 1  # as pixels at the border
    return k + (labels.reshape(-1, 1, 1, 1) == 2).to(torch.uint8) * (k < levels - 1), labels


def at_once(k: Tensor, labels: Tensor | None, num_classes: int, levels: int) -> DataStatistics:
    return DataStatistics.from_data(centres(k, levels).double(), labels, num_classes, (2 / levels) ** 2 / 12)


@pytest.mark.parametrize("most_dim", [4096, 3], ids=["full", "diagonal"])
@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("has_classes", [True, False])
def test_moments(has_classes: bool, levels: int, most_dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (level_statistics, statistics):
        monkeypatch.setattr(module, "MOST_DIM", most_dim)
    monkeypatch.setattr(level_statistics, "EXACT", 32)
    k, y = draw(301, levels)
    labels, classes = (y, 4) if has_classes else (None, 0)
    one, other = at_once(k, labels, classes, levels), measure_levels(k, SHAPE, labels, classes, levels)
    torch.testing.assert_close(other.class_means, one.class_means, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(other.eigenvalues, one.eigenvalues, rtol=1e-6, atol=1e-9)
    assert other.sigma_data == pytest.approx(one.sigma_data, rel=1e-7)
    x, sigma = torch.randn(5, *SHAPE), torch.rand(5) + 0.1
    torch.testing.assert_close(other.wiener(x, sigma), one.wiener(x, sigma), rtol=1e-5, atol=1e-5)
    assert (other.eigenvectors is None) == (one.eigenvectors is None) == (most_dim == 3)
    assert other.sample is not None and one.sample is not None
    *tensors, times = other.sample(50)
    *expected, expected_times = one.sample(50)
    assert times == expected_times
    for found, wanted in zip(tensors, expected, strict=True):
        torch.testing.assert_close(found, wanted.to(found), rtol=1e-6, atol=1e-6)
    for found, wanted in zip(other.marginals(), one.marginals(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-7)


def test_sums_are_exact_where_they_are_largest() -> None:
    k = torch.zeros(3 * level_statistics.EXACT + 1, 1, 1, 2, dtype=torch.uint8)
    k[::2, ..., 0], k[::3, ..., 1] = 255, 255
    found, x = measure_levels(k, (1, 1, 2), None, 0, 256), centres(k, 256).flatten(1).double()
    expected = torch.linalg.eigvalsh(x.T.cov(correction=0)).flip(0) + (2 / 256) ** 2 / 12
    torch.testing.assert_close(found.eigenvalues.double(), expected, rtol=1e-7, atol=0)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 256), st.integers(1, 40), st.integers(1, 256), st.integers(0, 1000))
def test_marginals(levels: int, n: int, used: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    k = torch.randint(0, min(used, levels), (n, 3), generator=generator)
    counts = torch.stack([column.bincount(minlength=levels) for column in k.T])
    values, width = centres(torch.arange(levels), levels), 2 / levels
    expected = Marginals.from_data(values[k], width)
    found = Marginals.from_counts(values, counts, width)
    assert torch.equal(found.edges, expected.edges) and torch.equal(found.masses, expected.masses)


def test_too_few() -> None:
    with pytest.raises(FlowdiffError, match="1 sample"):
        measure_levels(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), (1, 2, 2), None, 0, 256)


class Random(ImageData):
    def load(self) -> dict[str, Split]:
        return dict.fromkeys(("train", "val", "test"), draw(200, 256))


def test_large_data_are_measured_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Random("random", SHAPE, 3, 256)
    one, whole = data.statistics(3), data.measured_rows()
    monkeypatch.setattr(base, "LARGE", 100 * 12)
    monkeypatch.setattr(DataStatistics, "from_data", None)
    other, part = data.statistics(3), data.measured_rows()
    torch.testing.assert_close(other.eigenvalues, one.eigenvalues, rtol=1e-6, atol=1e-9)
    assert len(part[0]) == len(part[1]) == 100 and len(whole[0]) == 200
    assert all((row == whole[0]).flatten(1).all(1).any() for row in part[0])
