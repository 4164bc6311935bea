"""Augmentations change levels into levels and say by how much, to the training step alone."""

import math
from typing import Any

import pytest
import torch

from flowdiff.data.digits import Digits
from flowdiff.denoisers import Perturbation
from flowdiff.errors import ConfigError
from flowdiff.objectives.augmentation import Affine, Augmentation
from tests.helpers.configs import build, choices
from tests.helpers.models import points, random_flow

every = pytest.mark.parametrize("name", choices("augment"))
LEVELS = 17


def digits(n: int = 256) -> torch.Tensor:
    return Digits().images("train")[0][:n]


@every
def test_levels_stay_levels_and_what_is_unchanged_is_told_as_zero(name: str) -> None:
    augmentation = build("augment", name)(context_dim=5)
    assert isinstance(augmentation, Augmentation)
    k = digits()
    torch.manual_seed(0)
    changed, shift = augmentation(k, LEVELS)
    assert changed.dtype == k.dtype and changed.shape == k.shape and int(changed.max()) < LEVELS
    if shift is None:
        assert changed is k
        return
    assert shift.shape == (len(k), 5) and (shift == 0).all(), "nothing is told before the first step"
    torch.nn.init.normal_(augmentation.told.weight)
    torch.manual_seed(0)
    again, shift = augmentation(k, LEVELS)
    torch.testing.assert_close(again, changed)
    quiet = (shift == 0).all(1)
    assert 0 < quiet.sum() < len(k)
    assert (changed[quiet] == k[quiet]).all()
    assert (changed[~quiet] != k[~quiet]).flatten(1).any(1).float().mean() > 0.9


def still(**deviations: float) -> Affine:
    return Affine(5, probability=1.0, **({"rotation": 0.0, "stretch": 0.0, "shear": 0.0, "shift": 0.0} | deviations))


def blob() -> torch.Tensor:
    """A disc of radius 2.5 in the middle of 16×16, away from the centre by (3, 0) to the right."""
    y, x = torch.meshgrid(torch.arange(16) - 7.5, torch.arange(16) - 7.5, indexing="ij")
    return ((((x - 3) ** 2 + y**2).sqrt() < 2.5) * 255).to(torch.uint8)[None, None].expand(300, 1, 16, 16)


def centre(k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mass = k.double().sum((1, 2, 3))
    x = torch.arange(16, dtype=torch.float64) - 7.5
    return (k * x).double().sum((1, 2, 3)) / mass, (k * x[:, None]).double().sum((1, 2, 3)) / mass


def test_shifts_move_the_image_by_what_is_told() -> None:
    torch.manual_seed(0)
    k, a = still(shift=0.1).change(blob(), 256)
    x, y = centre(k)
    # what is read 0.1·a half-images (8 pixels) further right is shown that much further left
    torch.testing.assert_close(x, 3 - 0.8 * a[:, 4].double(), rtol=0, atol=0.1)
    torch.testing.assert_close(y, -0.8 * a[:, 5].double(), rtol=0, atol=0.1)


def test_turns_keep_the_distance_from_the_middle() -> None:
    torch.manual_seed(0)
    k, a = still(rotation=0.2).change(blob(), 256)
    x, y = centre(k)
    angle = 0.2 * a[:, 0].double()
    torch.testing.assert_close(x, 3 * angle.cos(), rtol=0, atol=0.12)
    torch.testing.assert_close(y, -3 * angle.sin(), rtol=0, atol=0.12)


def test_the_model_hears_of_it_for_the_step_only() -> None:
    model = random_flow()
    x, sigma, labels = points()
    before = model.log_prob(x, sigma, labels)
    shift = torch.ones(len(x), model.embed.dim, dtype=x.dtype)
    assert (model.log_prob(x, sigma, labels, Perturbation(shift=shift)) != before).any()
    assert torch.equal(model.log_prob(x, sigma, labels, Perturbation(shift=0 * shift)), before)
    assert torch.equal(model.log_prob(x, sigma, labels), before)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"probability": 1.5}, r"probability=1\.5: must be a number from 0 to 1"),
        ({"rotation": -0.1}, r"rotation=-0\.1: must be a number from 0 to 10"),
        ({"shift": math.inf}, r"shift=inf: "),
        ({"shear": "no"}, r"shear=no: "),
    ],
)
def test_mistakes_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Affine(5, **values)
