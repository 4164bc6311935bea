"""Peaks of resident memory, in GB, of a training step, an evaluation and a sampling of flows on MNIST, as JSON lines.

    python -m tests.helpers.peaks coupling linear …

The sizes are those of `flowdiff.train dataset=mnist flow=NAME`: batches of 128 with likelihood and denoising, as many
rows as an evaluation and a sampling take at once by default. A process of its own, because what a process once had it
keeps. Linux: the kernel's VmHWM, which is set back before each part.
"""

import copy
import ctypes
import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from flowdiff.commands.composition import compose
from flowdiff.commands.configuration import to_plain
from flowdiff.denoisers.base import Perturbation
from flowdiff.evaluation.measurement import evaluation_tile
from flowdiff.metrics.base import rows_at_once
from flowdiff.model import checkpoint
from flowdiff.model.construction import build
from flowdiff.options import Recipe

SHAPE, CLASSES = (1, 28, 28), 10
#: Inverted in d passes.
SLOW = ("autoregressive", "autoregressive_spline", "pixelcnn", "pixelcnn_coupling", "zuko")


def peak_of(work: Callable[[], Any]) -> float:
    """GB while something is done."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what an earlier part has freed
    Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    work()
    if "--times" in sys.argv:
        print(f"{time.perf_counter() - start:.1f} s", file=sys.stderr)
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 1e6


def peaks(flow: str) -> dict[str, float]:
    """Of one flow."""
    words = ["dataset=mnist", f"flow={flow}", "run_dir=."]
    config = to_plain(compose(words, "config"))
    model = checkpoint.build_denoiser(config, SHAPE, CLASSES)
    loss, size = build(Recipe[Any]("loss", config["loss"])), int(config["dataset"]["batch_size"])
    optimizer, average = torch.optim.AdamW(model.parameters()), copy.deepcopy(model)

    def noised(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(n, *SHAPE), torch.arange(n) % CLASSES

    def step() -> None:
        x0, labels = noised(size)
        given = Perturbation(drop=torch.rand(size) < 0.1)
        terms = loss(model, x0, labels, torch.rand(size) + 0.1, torch.randn_like(x0), given)
        terms["loss"].mean().backward()
        optimizer.step()

    def evaluate() -> None:
        x, labels = noised(min(500, rows_at_once(SHAPE)))
        with torch.no_grad():
            average.log_prob(x, 0.002, labels)  # type: ignore[operator]
            average(x, 0.5, labels)

    def sample() -> None:
        x, labels = noised(evaluation_tile(average))
        with torch.no_grad():
            average(x, 0.5, labels)
            if flow not in SLOW:
                average.inverse(x[:32], 0.1, labels[:32])  # type: ignore[operator]

    return {"training": peak_of(step), "evaluation": peak_of(evaluate), "sampling": peak_of(sample)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:]:
        if not name.startswith("-"):
            print(json.dumps({"flow": name, **peaks(name)}), flush=True)
