"""Averages of the weights of a length chosen afterwards: against the sum over all steps that they stand for."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flowdiff.errors import FlowdiffError
from flowdiff.model.averages import (
    KEY,
    Profile,
    average_of,
    combine,
    exponent,
    find_averages,
    inner,
    keep,
    snapshot,
    write_snapshot,
)

STEPS = 400


def trajectory() -> Tensor:
    """Weights that drift away from where they began, and shake, (STEPS, 50)."""
    torch.manual_seed(0)
    time = torch.linspace(0, 1, STEPS)[:, None]
    return 3 + 2 * torch.randn(50) * time.sqrt() + 0.3 * torch.randn(STEPS, 50) * (1 - time) + torch.cos(20 * time)


def directly(weights: Tensor, length: float) -> Tensor:
    """The average at the last step: each step's weights by the integral of the profile over it."""
    power, t = exponent(length) + 1, torch.arange(len(weights) + 1, dtype=torch.float64)
    shares = (t[1:] ** power - t[:-1] ** power) / t[-1] ** power
    return (shares[:, None] * weights.double()).sum(0).float()


def kept(weights: Tensor, lengths: tuple[float, ...], folder: Path, every: int) -> dict[str, dict[str, Tensor]]:
    """The averages after a training along these weights, and snapshots of them."""
    found = {str(length): {"w": weights[0].clone()} for length in lengths}
    for step, weight in enumerate(weights, start=1):
        for length in lengths:
            found[str(length)]["w"].lerp_(weight, 1 - keep(step, exponent(length)))
        if step % every == 0:
            write_snapshot(found, snapshot(folder, step))
    return found


def content(averages: object, step: int = STEPS) -> dict[str, object]:
    return {"global_step": step, "callbacks": {"EMA": {}, "PowerAverages": {KEY: averages}}}


@pytest.mark.parametrize("length", [0.01, 0.05, 0.1, 0.25])
def test_a_length_is_the_deviation_of_its_profile(length: float) -> None:
    gamma = exponent(length)
    t = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    density = (gamma + 1) * t**gamma
    mean = torch.trapezoid(density * t, t)
    assert torch.trapezoid(density * (t - mean) ** 2, t).sqrt().item() == pytest.approx(length, rel=1e-4)
    other = Profile(0.7, 3.0)
    theirs = torch.where(t < 0.7, 4 * t**3 / 0.7**4, 0.0)
    product = torch.trapezoid(density * theirs, t).item()
    assert inner(Profile(1.0, gamma), other) == pytest.approx(product, rel=1e-3)
    assert inner(other, Profile(1.0, gamma)) == inner(Profile(1.0, gamma), other)


@pytest.mark.parametrize("length", [0.05, 0.1])
def test_one_that_was_kept_is_the_sum_over_all_steps(length: float, tmp_path: Path) -> None:
    weights = trajectory()
    found = kept(weights, (0.05, 0.1), tmp_path, 25)
    torch.testing.assert_close(found[str(length)]["w"], directly(weights, length), rtol=0, atol=1e-5)
    torch.testing.assert_close(average_of(content(found), tmp_path, length)["w"], found[str(length)]["w"])


@pytest.mark.parametrize("length", [0.04, 0.06, 0.08, 0.12, 0.15])
@pytest.mark.parametrize("steps", [STEPS, STEPS - 13])  # at a snapshot, and between two
def test_any_other_is_too(length: float, steps: int, tmp_path: Path) -> None:
    weights = trajectory()[:steps]
    found = kept(weights, (0.05, 0.1), tmp_path, STEPS // 16)
    actual, expected = average_of(content(found, steps), tmp_path, length)["w"], directly(weights, length)
    scale = (directly(weights, 0.05) - directly(weights, 0.1)).abs().mean()  # what a length decides
    assert (actual - expected).abs().max() < 0.1 * scale
    assert (actual - expected).abs().max() < 3e-3
    assert (actual - found["0.05"]["w"]).abs().max() > 10 * (actual - expected).abs().max()


def test_weights_that_stay_are_their_average() -> None:
    profiles = [Profile(t, exponent(length)) for t in (100, 200, 300) for length in (0.05, 0.1)]
    shares, error = combine(profiles, Profile(300, exponent(0.07)))
    assert math.fsum(shares) == pytest.approx(1) and error < 0.05


def test_what_can_not_be_made_is_one_line(tmp_path: Path) -> None:
    found = kept(trajectory()[:40], (0.05, 0.1), tmp_path / "few", 30)
    for averages, length, message in (
        (content(found, 40), 0.25, r"weights=ema:0.25: the 1 snapshots before step 40 in .*few leave \d+% of it out"),
        (content(found, 40), 0.9, "the length of an average is from 0.01 to 0.25"),
        (content(found, 40), 0.001, "the length of an average is from 0.01 to 0.25"),
        ({"global_step": 3, "callbacks": {}}, 0.05, "kept no averages .* callbacks=averages"),
    ):
        with pytest.raises(FlowdiffError, match=message) as caught:
            average_of(averages, tmp_path / "few", length)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "averages",
    [
        [],
        {},
        {"0.05": []},
        {"0.05": {"w": 1.0}},
        {"5": {"w": torch.zeros(2)}},
        {"0.0": {"w": torch.zeros(2)}},
        {0.05: {"w": torch.zeros(2)}},
        {"0.05": {"w": torch.zeros(2)}, "0.1": {"w": torch.zeros(3)}},
    ],
)
def test_a_strangers_averages_are_refused(averages: object) -> None:
    with pytest.raises(FlowdiffError, match="damaged or foreign: its averages"):
        find_averages(content(averages))


def test_a_snapshot_of_another_run_is_named(tmp_path: Path) -> None:
    found = kept(trajectory(), (0.05, 0.1), tmp_path, 25)
    file = snapshot(tmp_path, 200)
    others = (
        {"0.05": {"w": torch.zeros(50)}},
        {length: {"w": torch.zeros(3)} for length in found},
        {length: {"w": torch.zeros(50), "v": torch.zeros(1)} for length in found},
    )
    for other in others:
        write_snapshot(other, file)
        with pytest.raises(FlowdiffError, match=f"its snapshot {file}: not of this run"):
            average_of(content(found), tmp_path, 0.08)
    file.write_bytes(b"nothing")
    with pytest.raises(FlowdiffError, match=f"its snapshot {file}: can't be read"):
        average_of(content(found), tmp_path, 0.08)
