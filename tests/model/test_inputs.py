"""What a notebook may hand to a model: the right answer, or one line in this package's words. Never NaN."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import flowdiff
from flowdiff.errors import FlowdiffError
from flowdiff.model.api import Model
from flowdiff.model.inputs import as_sigma
from tests.helpers.trained import checkpoint

X = torch.linspace(-1, 1, 3 * 64).reshape(3, 1, 8, 8)
METHODS = ("denoise", "forward", "log_prob", "score", "latent", "inverse")


@pytest.fixture(scope="module")
def model() -> Model:
    return flowdiff.load(checkpoint("digits"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("x", "sigma", "labels", "words"),
    [
        (X.mul(255).byte(), 0.5, 3, "holds uint8, must hold floats .*from_uint8"),
        (X.long(), 0.5, 3, "holds int64"),
        (X > 0, 0.5, 3, "holds bool"),
        (X.tolist(), 0.5, 3, "is a list"),
        (X[0], 0.5, 3, r"one sample; a batch of it is .\[None\]"),
        (X.flatten(1), 0.5, 3, r"shape \(3, 64\), must be \(B, 1, 8, 8\)"),
        (X.expand(3, 2, 8, 8), 0.5, 3, r"shape \(3, 2, 8, 8\)"),
        (X[:0], 0.5, 3, "no row"),
        (X.masked_fill(X > 0.99, torch.nan), 0.5, 3, r"\[2\] holds a NaN"),
        (X, 0.0, 3, "sigma=0: must be a finite number above 0"),
        (X, -1, 3, "sigma=-1"),
        (X, float("nan"), 3, "sigma=nan"),
        (X, float("inf"), 3, "sigma=inf"),
        (X, torch.ones(2), 3, r"sigma has the shape \(2,\)"),
        (X, torch.ones(3, 1), 3, r"sigma has the shape \(3, 1\)"),
        (X, [1.0, 0.0, 1.0], 3, "sigma=0"),
        (X, True, 3, "sigma is True"),
        (X, "much", 3, "sigma='much'"),
        (X, None, 3, "sigma=None"),
        (X, 0.5, 10, "class label 10: must be classes from 0 to 9"),
        (X, 0.5, -1, "class label -1"),
        (X, 0.5, [1, 2], r"labels have the shape \(2,\)"),
        (X, 0.5, [0.5, 1.5, 2.5], "labels hold float32"),
        (X, 0.5, torch.ones(3).bool(), "labels hold bool"),
        (X, 0.5, "ten", "labels=ten: no class of this name"),
        (X, 0.5, {"a": 1}, "no class|labels"),
    ],
)
def test_what_can_not_be_right_is_one_line(
    method: str, x: Any, sigma: Any, labels: Any, words: str, model: Model
) -> None:
    with pytest.raises(FlowdiffError, match=words) as caught:
        getattr(model, method)(x, sigma, labels)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "change",
    [
        lambda x, sigma, labels: (x.numpy(), sigma, labels),
        lambda x, sigma, labels: (x, np.float64(sigma), np.int64(labels)),
        lambda x, sigma, labels: (x, torch.full((3,), sigma), torch.full((3,), labels)),
        lambda x, sigma, labels: (x, [sigma] * 3, [labels] * 3),
        lambda x, sigma, labels: (x, torch.tensor([sigma], dtype=torch.float64), str(labels)),
        lambda x, sigma, labels: (x.double(), sigma, torch.tensor(labels, dtype=torch.int32)),
    ],
)
def test_what_means_the_same_gives_the_same(
    method: str, change: Callable[[Tensor, float, int], tuple[Any, Any, Any]], model: Model
) -> None:
    expected = getattr(model, method)(X, 0.5, 3)
    x, sigma, labels = change(X, 0.5, 3)
    found = getattr(model, method)(x, sigma, labels)
    assert found.dtype == (torch.float64 if getattr(x, "dtype", None) == torch.float64 else torch.float32)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0)
    assert expected.isfinite().all()


def test_a_level_is_as_exact_as_the_model(model: Model) -> None:
    """0.2 has no float32: D − x − σ²·score would be off by that rounding."""
    x = X.double()
    exact = torch.full((3,), 0.2, dtype=torch.float64)
    for sigma in (0.2, [0.2] * 3, np.full(3, 0.2)):
        assert torch.equal(as_sigma(sigma, x), exact)
    assert torch.equal(model.log_prob(x, 0.2, 3), model.log_prob(x, exact, 3))


def test_bytes_become_what_the_model_sees(model: Model) -> None:
    k = torch.arange(17).repeat(4)[:64].reshape(1, 1, 8, 8)
    images = (k.double() * 255 / 16).round().to(torch.uint8)
    x = model.from_uint8(images.numpy())
    torch.testing.assert_close(x, (2 * k.float() + 1) / 17 - 1)
    assert torch.equal(model.to_uint8(x), images)
    assert model.denoise(x, 0.1, 3).isfinite().all()
    with pytest.raises(FlowdiffError, match="images hold float32"):
        model.from_uint8(x)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n": 0}, "n=0: must be a whole number from 1 up"),
        ({"n": 2.5}, "n=2.5"),
        ({"n": 2, "seed": -1}, "seed=-1"),
        ({"n": 2, "seeds": [0, -1]}, "seeds=-1"),
        ({"n": 2, "seeds": [0]}, r"seeds=\[0\]: must be 2 whole numbers"),
        ({"n": 2, "seeds": [0, 2**32]}, "seeds="),
        ({"n": 2, "labels": 10}, "labels=10"),
        ({"n": 2, "num_steps": 0}, "num_steps=0"),
        ({"n": 2, "sigma_max": -1.0}, "sigma_max=-1.0"),
        ({"n": 2, "batch_size": 0}, "batch_size=0"),
    ],
)
def test_samples_that_can_not_be_drawn(arguments: dict[str, Any], words: str, model: Model) -> None:
    with pytest.raises(FlowdiffError, match=words):
        model.sample(**({"num_steps": 1, "quiet": True} | arguments))


def test_numbers_of_numpy_draw_the_same(model: Model) -> None:
    settings: dict[str, Any] = {"num_steps": 2, "quiet": True}
    expected = model.sample(2, seed=5, **settings)
    assert torch.equal(model.sample(np.int64(2), seed=np.int32(5), **settings), expected)  # type: ignore[arg-type]
    assert torch.equal(model.sample(2, seeds=np.arange(5, 7), **settings), expected)


def test_a_first_stage_for_a_model_of_pixels_is_refused() -> None:
    with pytest.raises(FlowdiffError, match=r"first_stage.path=/nowhere: .* one of pixels"):
        flowdiff.load(checkpoint("digits"), first_stage="/nowhere")
