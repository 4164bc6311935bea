"""Memory is bounded: of the flows on MNIST, and of long samplings. Measured by the kernel (Linux)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flowdiff.denoisers.base import UNPERTURBED, Denoiser, Perturbation
from flowdiff.metrics.base import rows_at_once
from flowdiff.samplers.batched import BatchedSampler
from tests.helpers.command_lines import environment
from tests.helpers.configs import build
from tests.helpers.peaks import peak_of

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel is not Linux")

#: What took most when all were measured: experiments/memory.
HEAVY = ("autoregressive_spline",)


@pytest.mark.slow
def test_the_heaviest_flow_on_mnist_stays_under_4_gb() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.peaks", *HEAVY],
        env=environment() | {"FLOWDIFF_DATA": "nowhere"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [entry.pop("flow") for entry in found] == list(HEAVY)
    for flow, entry in zip(HEAVY, found, strict=True):
        assert max(entry.values()) < 4.0, f"{flow}: {entry}"
        assert entry["training"] > 0.3, "torch alone takes more"


def test_evaluations_take_fewer_of_large_images() -> None:
    assert [rows_at_once(shape) for shape in ((1, 8, 8), (1, 28, 28), (3, 32, 32))] == [1568, 128, 32]


class Half(Denoiser):
    """D = x/2, images of 28×28."""

    def __init__(self) -> None:
        super().__init__((1, 28, 28), 0)

    def denoise(
        self,
        x: Tensor,
        sigma: Tensor | float,
        labels: Tensor | None = None,
        perturbation: Perturbation = UNPERTURBED,
    ) -> Tensor:
        return x / 2


@pytest.mark.slow
def test_ten_thousand_samples_take_the_memory_of_a_thousand() -> None:
    """But for the samples themselves, 31 MB."""
    sampler = build("sampler", "euler", num_steps=2)
    schedule = build("schedule", "karras", sigma_min=0.002, sigma_max=80.0)
    batched = BatchedSampler(Half(), sampler, schedule)
    found: list[Tensor] = []

    def draw(n: int) -> None:
        found[:] = [batched.draw(None, range(n), quiet=True).x]

    draw(300)
    few, many = (peak_of(lambda n=n: draw(n)) for n in (1000, 10_000))  # type: ignore[misc]
    assert found[0].shape == (10_000, 1, 28, 28)
    assert torch.isfinite(found[0]).all()
    assert many - few < 0.0314 + 0.02
