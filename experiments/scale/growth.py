"""How a training step and a sampling grow: side of the images, number of steps of a flow, batch, samples drawn."""

import ctypes
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.common.counting import count_calls, count_kept
from flowdiff.commands.train import request_of
from flowdiff.data.base import read_data
from flowdiff.data.statistics import DataStatistics
from flowdiff.denoisers.base import Denoiser
from flowdiff.model.construction import build
from flowdiff.samplers.batched import BatchedSampler
from flowdiff.training.building import seed_all

Row = dict[str, Any]
SIDES, BATCH = (8, 16, 32, 64), 8
MODELS = {
    "coupling": ["flow=coupling"],
    "conv": ["flow=conv"],
    "glow": ["flow=glow"],
    "U-Net": ["denoiser=unet", "loss=denoising"],
}
#: Of each study: what is varied, its values, and the models.
FLOWS, BATCHES, SAMPLES = (1, 2, 4, 8, 16), (8, 32, 128, 512), (1, 10, 100, 1000)
STEPS = 20  # of the ancestral sampler


def sides(rounds: int) -> Iterator[Row]:
    """A step on 8 colour patches of each side."""
    for side in SIDES:
        measured: DataStatistics | None = None
        for name, words in MODELS.items():
            given = ["dataset=patches", f"dataset.size={side}", "augment=none", "loss=likelihood", *words]
            step, parameters, measured = build_step(given, BATCH, measured)
            yield {"study": "side", "model": name, "at": side, **cost(step, parameters, BATCH, rounds)}


def flows(rounds: int) -> Iterator[Row]:
    """A step on 128 digits of flows of so many steps."""
    for name in ("coupling", "conv"):
        for n in FLOWS:
            words = [*MODELS[name], f"flow.n_flows={n}", "loss=likelihood"]
            step, parameters, _ = build_step(words, 128, None)
            yield {"study": "n_flows", "model": name, "at": n, **cost(step, parameters, 128, rounds)}


def batches(rounds: int) -> Iterator[Row]:
    """A step on so many digits."""
    for name in MODELS:
        for size in BATCHES:
            step, parameters, _ = build_step(["loss=likelihood", *MODELS[name]], size, None)
            yield {"study": "batch", "model": name, "at": size, **cost(step, parameters, size, rounds)}


def samples(rounds: int) -> Iterator[Row]:
    """So many digits drawn by 20 ancestral steps."""
    for name in ("coupling", "U-Net"):
        denoiser, _, _, _ = build_model(MODELS[name])
        sampler = build(request_of("sampler=ancestral", f"num_steps={STEPS}", "run_dir=.").sampler)
        schedule = build(request_of("run_dir=.").schedule)
        batched = BatchedSampler(denoiser, sampler, schedule)
        for n in SAMPLES:

            def draw(n: int = n, batched: BatchedSampler = batched) -> None:
                batched.draw(None, range(n), quiet=True)

            seconds = min(timed(draw) for _ in range(1 if n == max(SAMPLES) else rounds))
            yield {
                "study": "samples",
                "model": name,
                "at": n,
                "seconds": seconds,
                "each": seconds / n,
                "peak": peak(draw),
            }


STUDIES: dict[str, Callable[[int], Iterator[Row]]] = {
    "side": sides,
    "n_flows": flows,
    "batch": batches,
    "samples": samples,
}


def build_model(
    words: Sequence[str], measured: DataStatistics | None = None
) -> tuple[Denoiser, Any, Any, DataStatistics]:
    """A model with small random weights, its data, the request, and the data's statistics if they aren't given."""
    request = request_of("run_dir=.", *words)
    seed_all(0)
    data = read_data(build(request.dataset))
    denoiser = build(request.denoiser, Denoiser, shape=list(data.shape), num_classes=data.num_classes)
    measured = measured or data.statistics(denoiser.num_classes)
    denoiser.fit(measured)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    return denoiser, data, request, measured


def build_step(
    words: Sequence[str], batch: int, measured: DataStatistics | None
) -> tuple[Callable[[], None], int, DataStatistics]:
    """A training step on one batch, and the model's number of parameters."""
    denoiser, data, request, measured = build_model(words, measured)
    k, labels = data.images("train")
    x0, labels = data.to_model(k[:batch]), labels[:batch]
    sigma, eps = build(request.noise)(len(x0), x0.device), torch.randn_like(x0)
    loss, optimizer = build(request.loss), torch.optim.AdamW(denoiser.parameters(), fused=True)

    def step() -> None:
        terms: dict[str, Tensor] = loss(denoiser, x0, labels, sigma, eps)
        terms["loss"].mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, sum(p.numel() for p in denoiser.parameters()), measured


def cost(step: Callable[[], None], parameters: int, batch: int, rounds: int) -> Row:
    """CPU seconds (the least of some rounds), bytes kept for the backward pass, calls of ATen."""
    step()
    seconds = min(timed(step) for _ in range(rounds))
    kept, calls = count_kept(step), count_calls(step)
    return {"seconds": seconds, "each": seconds / batch, "kept": kept, "calls": calls, "parameters": parameters}


def timed(work: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def peak(work: Callable[[], object]) -> int:
    """Bytes that the resident memory grows by at its peak (Linux' VmHWM, set back before); 0 elsewhere."""
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        return 0
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what an earlier part has freed
    clear.write_text("5")
    before = resident("VmRSS")
    work()
    return max(0, resident("VmHWM") - before)


def resident(what: str) -> int:
    """An entry of /proc/self/status, in bytes."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{what}:")]
    return 1024 * int(line.split()[1])
