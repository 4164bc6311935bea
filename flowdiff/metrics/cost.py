r"""What a model costs: parameters, seconds, memory. On the machine at hand, so best beside another's.

    parameters               of the denoiser
    seconds_per_evaluation   of D of one batch: the median of `repeats` after one that is not counted
    seconds_per_100          of 100 samples, drawn as the other metrics' are: likewise, of `num_samples`
    memory_gb                10⁹ bytes: the weights, and what drawing those samples takes beside them at its peak

Memory is counted as it grows in the draw that isn't timed, so that another model in the same process counts for
nothing: on CUDA by PyTorch's allocator, on Linux by the process' peak resident set (VmHWM), which is set back to the
present one before (proc(5), clear_refs); elsewhere there is no number, and the value is null.
"""

import ctypes
import functools
import gc
import math
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from flowdiff.metrics.base import Evaluand, Metric, Result
from flowdiff.options import Count, Range, checked
from flowdiff.quantities import Quantity

SIGMA = 1.0  # of the batch that D is timed on; no network here takes another time at another level
SLACK = 2**24  # bytes by which the kernel's counts of one moment may differ


class Cost(Metric):
    """The four numbers.

    Args:
        num_samples: drawn in each measurement, best a multiple of the tile, to which batches are filled up.
        batch_size: rows of the evaluation of D.
        repeats: measurements of each time.
    """

    quantities = (
        Quantity("parameters"),  # a size, not a merit
        Quantity("seconds_per_evaluation", "s", "lower"),
        Quantity("seconds_per_100", "s", "lower", plotted="seconds_per_100", column="seconds_per_100"),
        Quantity("memory_gb", "GB", "lower"),
    )

    @checked
    def __init__(
        self,
        num_samples: Annotated[int, Range(1, 1000000)] = 256,
        batch_size: Count = 128,
        repeats: Annotated[int, Range(1, 1000)] = 3,
    ) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.repeats = repeats

    def keys(self, model: Evaluand) -> list[str]:
        """Half of them without a sampler."""
        known = super().keys(model)
        return known if model.sample is not None else known[:2]

    def __call__(self, model: Evaluand) -> dict[str, Result]:
        """The keys above; the times with all that were measured, in seconds, the device and its threads."""
        device = torch.device(model.device)
        machine = model.conditions(device=device.type, threads=torch.get_num_threads())
        tensors = [*model.denoiser.parameters(), *model.denoiser.buffers()]
        count = sum(p.numel() for p in model.denoiser.parameters())
        x, labels = self._batch(model)
        levels = torch.full((len(x),), SIGMA, device=device)
        model.denoiser(x, levels, labels)
        evaluation = times(lambda: model.denoiser(x, levels, labels), self.repeats, device)
        results = {
            "parameters": Result(count, 1, model.conditions()),
            "seconds_per_evaluation": Result(statistics.median(evaluation), len(x), machine | {"seconds": evaluation}),
        }
        if model.sample is None:
            return results
        wanted = model.labels(model.data.images(model.split)[1][model.rows(self.num_samples)])
        draw = functools.partial(model.sample, self.num_samples, wanted, model.seed)
        with Memory(device) as memory:
            conditions = draw().conditions
        drawing = times(draw, self.repeats, device)
        machine |= conditions
        per_100 = statistics.median(drawing) * 100 / self.num_samples
        weights = sum(t.numel() * t.element_size() for t in tensors)
        gigabytes = (weights + memory.grown) / 1e9
        return results | {
            "seconds_per_100": Result(per_100, self.num_samples, machine | {"seconds": drawing}),
            "memory_gb": Result(gigabytes, self.num_samples, machine | {"weights_gb": weights / 1e9}),
        }

    def _batch(self, model: Evaluand) -> tuple[Tensor, Tensor | None]:
        """`batch_size` noised rows of the split, repeated where it has fewer, and their labels."""
        x0, noise, labels = model.noised(self.batch_size)
        rows = torch.arange(self.batch_size) % len(x0)
        return (x0 + SIGMA * noise)[rows].to(model.device), model.labels(labels[rows])


def times(action: Callable[[], Any], repeats: int, device: torch.device) -> list[float]:
    """Seconds of each of so many calls."""
    found = []
    for _ in range(repeats):
        wait(device)
        start = time.perf_counter()
        action()
        wait(device)
        found.append(time.perf_counter() - start)
    return found


def wait(device: torch.device) -> None:
    """Until all that the device was told is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Memory:
    """By how many bytes the memory in use grows at most within it: `grown`, NaN where that can't be known.

    Args:
        device: the one whose memory it is.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.grown = self._before = math.nan

    def __enter__(self) -> "Memory":
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        elif self.device.type == "cpu":
            self._before = resident_anew()
        return self

    def __exit__(self, *_: object) -> None:
        cuda = self.device.type == "cuda"
        self.grown = (torch.cuda.max_memory_allocated(self.device) if cuda else resident("VmHWM")) - self._before


def resident_anew() -> float:
    """The resident set in bytes, from which a new peak is counted, freed memory given back; NaN where it can't be."""
    try:
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        if trim is not None:
            trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return math.nan
    now = resident("VmRSS")
    return now if resident("VmHWM") - now < SLACK else math.nan


def resident(name: str) -> float:
    """A line of /proc/self/status in bytes, NaN if it isn't there."""
    try:
        found = re.search(rf"^{name}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    except OSError:
        return math.nan
    return math.nan if found is None else 1024.0 * int(found[1])
