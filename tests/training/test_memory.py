"""Memory is bounded: of the flows on MNIST, and of long samplings. Measured by the kernel (Linux)."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from flowdiff.data.images import ImageFolder
from flowdiff.denoisers.base import UNPERTURBED, Denoiser, Perturbation
from flowdiff.metrics.base import rows_at_once
from flowdiff.samplers.batched import BatchedSampler
from tests.helpers.command_lines import BARE, environment
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


@pytest.mark.slow
def test_200_000_images_of_64_pixels_train_within_3_gb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the command line. The files are links to few pictures; that their pixels (2.5 GB) were read is made up."""
    n, pixels = 200_000, torch.randint(0, 256, (64, 3, 64, 64), dtype=torch.uint8)
    if shutil.disk_usage(tmp_path).free < 4e9:
        pytest.skip("4 GB of disk are needed")
    for i in range(5):  # a file has at most 65,000 names
        Image.fromarray(pixels[i].permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    for c in range(2):
        (tmp_path / "pictures" / f"{c}").mkdir(parents=True)
        for i in range(n // 2):
            os.link(tmp_path / f"{i % 5}.png", tmp_path / "pictures" / f"{c}" / f"{i}.png")
    monkeypatch.setenv("FLOWDIFF_CACHE", str(tmp_path / "cache"))
    with monkeypatch.context() as patch:
        patch.setattr(ImageFolder, "_read_all", lambda self, reading: (pixels[i % 64] for i in range(n)))
        ImageFolder(str(tmp_path / "pictures")).images("train")

    words = ["dataset=images", f"dataset.root={tmp_path / 'pictures'}", "denoiser=unet", "denoiser.width=8"]
    words += [*BARE, f"run_dir={tmp_path / 'run'}", "dataset.batch_size=32", "trainer.limit_val_batches=1"]
    command = [sys.executable, "-m", "flowdiff.train", *words, "loss=denoising", "trainer.max_steps=3"]
    with (tmp_path / "said").open("w+") as said:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    for folder in ("cache", "pictures"):  # pytest keeps what is left
        shutil.rmtree(tmp_path / folder)
    text = (tmp_path / "said").read_text()
    assert process.returncode == 0, text
    assert "160,000 training samples" in text and "reading" not in text
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
    assert 0.3 < usage.ru_maxrss / 1e6 < 3.0
