"""Works timed in turn, in rounds: what slows the machine for a while slows all of them, and their ratios stay."""

import time
from collections.abc import Callable, Mapping, Sequence

import torch

from experiments.common.spread import Spread

Work = Callable[[], object]
SIDE = 1024  # of the matrices whose product is the machine's rate
IMAGES, CHANNELS, SIZE = 128, 128, 14  # of the 3×3 convolution whose rate is another
PRODUCT, CONVOLUTION = "product", "convolution"
Times = dict[str, list[float]]


def seconds(work: Work, device: torch.device) -> float:
    """Of one call: of the process's CPU on a CPU, by the clock on a GPU."""
    if device.type == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def time_in_turn(works: Mapping[str, Work], rounds: int, device: torch.device) -> Times:
    """Seconds of each work in each round, after one call that isn't timed."""
    for work in works.values():
        work()
    found: Times = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            found[name].append(seconds(work, device))
    return found


def build_references(device: torch.device) -> dict[str, Work]:
    """Works that stand for the machine: a product of two matrices, and a convolution with channels last, which another
    library may do at another rate."""
    a, b = (torch.randn(SIDE, SIDE, device=device) for _ in range(2))
    x, weight = torch.randn(IMAGES, CHANNELS, SIZE, SIZE), torch.randn(CHANNELS, CHANNELS, 3, 3)
    x, weight = (t.to(device, memory_format=torch.channels_last) for t in (x, weight))
    return {PRODUCT: lambda: torch.mm(a, b), CONVOLUTION: lambda: torch.conv2d(x, weight, padding=1)}


def reference_rates(found: Times) -> dict[str, float]:
    """Operations a second of each at its fastest."""
    operations = {PRODUCT: 2 * SIDE**3, CONVOLUTION: 2 * IMAGES * SIZE**2 * CHANNELS**2 * 9}
    return {name: number / min(found[name]) for name, number in operations.items()}


def ratio(some: Sequence[float], others: Sequence[float]) -> Spread:
    """Of what was measured in the same rounds."""
    return Spread.of([one / other for one, other in zip(some, others, strict=True)])


def milliseconds(taken: Sequence[float]) -> Spread:
    """Of seconds."""
    return Spread.of([1e3 * each for each in taken])
