"""Distributions of the noise level in training."""

import math
from collections.abc import Callable

import pytest
import torch

from flowdiff.errors import ConfigError
from flowdiff.objectives.noise import Fixed, LogNormal, LogUniform
from tests.helpers.configs import build, choices


@pytest.mark.parametrize("name", choices("noise"))
def test_positive_and_a_function_of_the_global_generator(name: str) -> None:
    noise = build("noise", name, sigma_min=0.002, sigma_max=80.0)
    torch.manual_seed(3)
    first = noise(64)
    torch.manual_seed(3)
    assert torch.equal(noise(64), first)
    assert len(first.unique()) == 1 or not torch.equal(noise(64), first)
    assert first.shape == (64,) and (first > 0).all() and first.isfinite().all()
    assert noise(1).shape == (1,)


def test_log_normal() -> None:
    torch.manual_seed(0)
    logs = LogNormal(p_mean=-0.4, p_std=0.7)(20000).log()
    assert logs.mean().item() == pytest.approx(-0.4, abs=0.02)
    assert logs.std().item() == pytest.approx(0.7, abs=0.02)


def uniform_places() -> torch.Tensor:
    logs = LogUniform(0.01, 10.0)(100).log()
    return (logs - math.log(0.01)) / (math.log(10.0) - math.log(0.01))


def normal_places() -> torch.Tensor:
    return torch.special.ndtr((LogNormal(-0.4, 0.7)(100).log() + 0.4) / 0.7)


@pytest.mark.parametrize("draw", [uniform_places, normal_places])
def test_every_batch_covers_the_distribution_evenly(draw: Callable[[], torch.Tensor]) -> None:
    torch.manual_seed(0)
    places = draw()
    assert places.min() >= 0 and places.max() <= 1
    assert torch.equal((places * 100).long().sort().values, torch.arange(100))
    assert not torch.equal(places, places.sort().values), "neighbours in the data must not share a level"


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: LogNormal(p_std=0.0), r"p_std=0\.0"),
        (lambda: LogUniform(0.0, 1.0), r"sigma_min=0\.0"),
        (lambda: LogUniform(2.0, 1.0), r"sigma_min=2\.0"),
    ],
)
def test_mistakes_are_named(make, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        make()


def test_fixed_is_one_level() -> None:
    assert torch.equal(Fixed(0.002)(5), torch.full((5,), 0.002))
    with pytest.raises(ConfigError, match=r"sigma=0"):
        Fixed(0)
