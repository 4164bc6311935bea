"""Rows by memory: what D takes is counted, what is free is read, and neither moves a sample or a likelihood."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from flowdiff.data.digits import Digits
from flowdiff.denoisers import memory
from flowdiff.denoisers.memory import SHARE, count_bytes, free_memory, rows_that_fit
from flowdiff.evaluation.measurement import evaluation_tile
from flowdiff.metrics.base import Evaluand, measure
from flowdiff.metrics.likelihood import BitsPerDim
from flowdiff.samplers.batched import BatchedSampler, default_tile, seeds_from
from tests.helpers.configs import build, choices
from tests.helpers.models import IMAGE, make, randomise, statistics

CPU = torch.device("cpu")
MB = 1 << 20
Set = Callable[[float], None]


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Set:
    """`free(n)`: so many bytes of memory may be given out."""

    def change(n: float) -> None:
        monkeypatch.setattr(memory, "free_memory", lambda device: n / SHARE)

    return change


class Twice(nn.Module):
    """D = 2 · (W x), with two tensors of a megabyte a row at once, after a moment with six whatever the rows."""

    num_classes, shape = 0, (1, 512, 512)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(512, 512))
        self.calls: list[int] = []

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        self.calls.append(len(x))
        weight = torch.stack([self.weight] * 6).mean(0)
        return 2 * (weight @ x)


def test_what_is_alive_at_once_is_counted() -> None:
    model = Twice()
    found = [count_bytes(model, model.shape, n, "cpu") / MB for n in (1, 2, 3, 5)]
    assert found == [7, 7, 7, 11], "six and their mean; or the mean and twice the rows"


@pytest.mark.parametrize(
    ("megabytes", "rows"), [(0.1, 1), (7, 1), (13, 1), (14, 4), (17, 4), (18, 8), (40, 16), (41, 16), (42, 20)]
)
def test_rows_that_are_certain_to_fit(free: Set, megabytes: float, rows: int) -> None:
    free(megabytes * MB)
    model = Twice()
    assert rows_that_fit(model, model.shape, 20, "cpu") == rows
    assert all(max(7, 1 + 2 * n) <= megabytes for n in model.calls if n > 1), "no call that might not fit"


@pytest.mark.parametrize("room", [memory.PLENTY * 10 * 2**18, math.inf])
def test_nothing_is_counted_where_there_is_plenty(free: Set, room: float) -> None:
    free(room)
    model = Twice()
    assert rows_that_fit(model, model.shape, 10, "cpu") == 10 and not model.calls


@pytest.mark.parametrize("flow", choices("flow"))
def test_more_rows_take_no_more_than_is_foreseen(flow: str) -> None:
    """What `rows_that_fit` rests on; and a row takes less than what is plenty."""
    model = make(flow=flow)
    one, four, twelve = (count_bytes(model, IMAGE, n, "cpu") for n in (1, 4, 12))
    assert 0 < one <= four <= 4 * one and four <= twelve <= 3 * four
    assert (twelve - four) / 8 < memory.PLENTY * math.prod(IMAGE)


def test_little_memory_moves_no_sample_and_no_likelihood(free: Set) -> None:
    model = make((1, 8, 8), 10)
    model.fit(statistics((1, 8, 8), 10))
    randomise(model)
    model.eval()
    schedule = build("schedule", "karras", sigma_min=0.002, sigma_max=80.0)
    found = []
    for room in (math.inf, 6 * count_bytes(model, model.shape, 1, "cpu")):
        free(room)
        batched = BatchedSampler(model, build("sampler", "euler", num_steps=3), schedule)
        evaluand = Evaluand(model, Digits())
        drawn = batched.draw(torch.arange(20) % 10, seeds_from(0, 20), quiet=True).x
        bits = measure({"b": BitsPerDim()}, evaluand)[0]["bits_per_dim"].value
        found.append((batched.rows, evaluation_tile(model), evaluand.rows_in_a_pass, drawn, bits))
    plenty, little = found
    assert plenty[:3] == (default_tile(model.shape), 256, 500)
    assert all(1 < n < 64 for n in little[:3])
    torch.testing.assert_close(little[3], plenty[3], rtol=1e-4, atol=1e-5)
    assert little[4] == pytest.approx(plenty[4], rel=1e-6)
    free(1.0)
    assert BatchedSampler(model, build("sampler", "euler", num_steps=3), schedule, tile=48).rows == 48, "as it is said"


def written(folder: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{content}\n")
    return folder


MACHINE = {"proc/meminfo": "MemTotal:  9000 kB\nMemAvailable:    4000 kB"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 4_096_000),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": "max", "sys/fs/cgroup/memory.current": 5}, 4_096_000),
        (
            {
                "proc/self/cgroup": "0::/job/step",
                "sys/fs/cgroup/job/memory.max": 1000,
                "sys/fs/cgroup/job/memory.current": 700,
                "sys/fs/cgroup/job/memory.stat": "anon 1\ninactive_file 50",
                "sys/fs/cgroup/job/step/memory.max": 5000,
                "sys/fs/cgroup/job/step/memory.current": 600,
            },
            350,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu:/elsewhere\n4:hugetlb,memory:/a",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": 9000,
                "sys/fs/cgroup/memory/memory.usage_in_bytes": 1000,
                "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 10",
            },
            8010,
        ),
    ],
)
def test_free_memory_is_the_least_that_is_granted(tmp_path: Path, files: dict[str, object], expected: float) -> None:
    assert free_memory(CPU, written(tmp_path, MACHINE | files)) == expected


def test_memory_that_is_not_known_bounds_nothing(tmp_path: Path) -> None:
    assert free_memory(CPU, tmp_path) == free_memory(torch.device("mps")) == math.inf
