"""What a model costs: parameters are counted, times are medians, memory is the model's own."""

import json
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowdiff.data.digits import Digits
from flowdiff.errors import ConfigError
from flowdiff.metrics import cost
from flowdiff.metrics.base import Evaluand, Metric, Result, measure
from flowdiff.metrics.cost import Cost
from flowdiff.samplers.batched import Drawn

MEGABYTE = 10**6


class Slow(nn.Module):
    """D that takes 20 ms, with 1,000,000 parameters of 8 bytes."""

    num_classes = 10

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(MEGABYTE, dtype=torch.float64))
        self.rows: list[int] = []

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        assert sigma.shape == (len(x),) and labels is not None and labels.shape == sigma.shape
        self.rows.append(len(x))
        time.sleep(0.02)
        return x


class Draws:
    """Takes 50 ms, the third time 500 ms, and for a moment so many bytes."""

    def __init__(self, size: int = 0) -> None:
        self.size, self.calls = size, 0

    def __call__(self, n: int, labels: Tensor | None, seed: int) -> Drawn:
        assert labels is not None and len(labels) == n
        self.calls += 1
        torch.ones(self.size, dtype=torch.uint8)
        time.sleep(0.5 if self.calls == 3 else 0.05)
        conditions = {"sampler": "draws", "nfe": 7, "calls": self.calls}
        return Drawn(torch.zeros(n, 1, 8, 8), conditions=conditions)


def measured(sample: Any, metrics: dict[str, Metric]) -> dict[str, Result]:
    results, skipped = measure(metrics, Evaluand(Slow(), Digits(), sample=sample))
    assert not skipped
    return results


def test_numbers_and_their_conditions() -> None:
    found = measured(Draws(), {"cost": Cost(num_samples=25, batch_size=400)})  # more than the test split has
    assert found["parameters"].value == MEGABYTE
    evaluation, drawing = found["seconds_per_evaluation"], found["seconds_per_100"]
    assert 0.02 <= evaluation.value < 0.1 and evaluation.n == 400 and len(evaluation.conditions["seconds"]) == 3
    assert 0.05 * 4 <= drawing.value < 0.5 * 4, "the median of 100 / 25 such draws"
    assert drawing.n == 25 and drawing.conditions["nfe"] == 7 and max(drawing.conditions["seconds"]) > 0.5
    assert found["memory_gb"].conditions["weights_gb"] == 0.008
    assert all(json.dumps(result.to_json(), allow_nan=False) for result in found.values())


def test_memory_is_what_this_model_takes() -> None:
    """Not the peak of earlier work in the process, and not what else lies there."""
    torch.ones(400 * MEGABYTE, dtype=torch.uint8)
    other = torch.ones(100 * MEGABYTE, dtype=torch.uint8)
    found = measured(Draws(200 * MEGABYTE), {"cost": Cost(num_samples=1, batch_size=1, repeats=1)})
    assert 0.2 <= found["memory_gb"].value < 0.25, found["memory_gb"]
    assert len(other)


def test_no_number_where_the_system_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "resident", lambda name: float("nan"))
    found = measured(Draws(), {"cost": Cost(num_samples=1, batch_size=1, repeats=1)})
    assert found["memory_gb"].to_json()["value"] is None and found["seconds_per_100"].value > 0


def test_other_metrics_keep_the_conditions_of_their_own_samples() -> None:
    class Shared(Metric):
        def __call__(self, model: Evaluand) -> dict[str, Result]:
            model.samples(4)
            return {f"shared{id(self)}": Result(0.0, 4, model.sample_conditions)}

    metrics = {"first": Shared(), "cost": Cost(num_samples=1, batch_size=1, repeats=1), "last": Shared()}
    found = measured(Draws(), metrics)
    assert [r.conditions["calls"] for name, r in found.items() if name.startswith("shared")] == [1, 1]


@pytest.mark.parametrize("key", ["num_samples", "batch_size", "repeats"])
def test_mistakes(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}=0"):
        Cost(**{key: 0})
