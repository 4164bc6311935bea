"""Pixels change their units without changing their value."""

import pytest
import torch

from flowdiff.data.quantise import EDGE, centres, dequantise, from_uint8, to_levels, to_uint8

LEVELS = (2, 3, 16, 17, 200, 255, 256)


@pytest.mark.parametrize("levels", LEVELS)
def test_every_level_survives_dequantisation(levels):
    k = torch.arange(levels).repeat_interleave(2000).to(torch.uint8)
    x = dequantise(k, levels, torch.Generator().manual_seed(0))
    assert x.dtype == torch.float32 and x.min() >= -1 and x.max() <= 1
    assert torch.equal(to_levels(x, levels), k)


@pytest.mark.parametrize("levels", LEVELS)
def test_the_edges_of_a_bin_survive_too(levels, monkeypatch):
    k = torch.arange(levels).to(torch.uint8)
    for u in (0.0, 1.0 - 2.0**-24):
        monkeypatch.setattr(torch, "rand", lambda shape, u=u, **kwargs: torch.full(shape, u))
        assert torch.equal(to_levels(dequantise(k, levels), levels), k), u


@pytest.mark.parametrize("levels", LEVELS)
def test_centres_lie_in_the_middle(levels):
    k = torch.arange(levels).to(torch.uint8)
    x = centres(k, levels)
    assert torch.equal(to_levels(x, levels), k)
    torch.testing.assert_close(x.diff(), torch.full((levels - 1,), 2 / levels), atol=1e-6, rtol=0)
    torch.testing.assert_close(x, -x.flip(0), atol=1e-6, rtol=0)


def test_noise_is_uniform_over_the_bin():
    u = (dequantise(torch.full((200_000,), 5), 17, torch.Generator().manual_seed(1)) + 1) / 2 * 17 - 5
    assert u.min() >= EDGE / 2 and u.max() < 1
    assert abs(u.mean().item() - 0.5) < 0.003 and abs(u.var().item() - 1 / 12) < 0.001


def test_all_256_bytes_survive_the_whole_way():
    b = torch.arange(256).to(torch.uint8)
    assert torch.equal(to_uint8(b, 256), b)
    assert torch.equal(to_uint8(to_levels(centres(b, 256), 256), 256), b)
    assert torch.equal(to_uint8(to_levels(dequantise(b, 256), 256), 256), b)


@pytest.mark.parametrize("levels", LEVELS)
def test_bytes_of_levels_are_spread_evenly_and_read_back(levels):
    k = torch.arange(levels).to(torch.uint8)
    b = to_uint8(k, levels)
    assert b[0] == 0 and b[-1] == 255
    assert torch.equal(from_uint8(b, levels), k)
    assert (b.double() - k.double() * 255 / (levels - 1)).abs().max() <= 0.5


def test_values_outside_the_range_go_to_the_ends():
    assert to_levels(torch.tensor([-7.0, 1.0, 7.0]), 17).tolist() == [0, 16, 16]


@pytest.mark.parametrize("levels", (1, 257))
def test_levels_must_fit_a_byte(levels):
    with pytest.raises(ValueError, match="between 2 and 256"):
        to_levels(torch.zeros(1), levels)
