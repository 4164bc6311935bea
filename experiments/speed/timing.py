"""Works timed in turn, in rounds: what slows the machine for a while slows all of them, and their ratios stay."""

import time
from collections.abc import Callable, Mapping, Sequence

import torch

from experiments.common.spread import Spread

Work = Callable[[], object]
SIDE = 1024  # of the matrices whose product is the machine's rate
PRODUCT = "product"
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


def build_product(device: torch.device) -> Work:
    """The product of two matrices that stands for the machine; of `product_rate`."""
    a, b = (torch.randn(SIDE, SIDE, device=device) for _ in range(2))
    return lambda: torch.mm(a, b)


def product_rate(taken: Sequence[float]) -> float:
    """Operations a second of the product at its fastest."""
    return 2 * SIDE**3 / min(taken)


def ratio(some: Sequence[float], others: Sequence[float]) -> Spread:
    """Of what was measured in the same rounds."""
    return Spread.of([one / other for one, other in zip(some, others, strict=True)])


def milliseconds(taken: Sequence[float]) -> Spread:
    """Of seconds."""
    return Spread.of([1e3 * each for each in taken])
