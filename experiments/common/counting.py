"""What a piece of work asks of the machine, counted: no clock is read."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


class CallCounter(TorchDispatchMode):
    """The operations that ATen is called for, backward passes and optimisers too; by name in `calls`."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[str(func).split(".")[1]] += 1
        return func(*args, **(kwargs or {}))


def count_calls(work: Callable[[], object]) -> int:
    """How many operations ATen is called for."""
    with CallCounter() as counter:
        work()
    return counter.calls.total()


def count_events(work: Callable[[], object]) -> int:
    """How many operations of ATen the profiler sees: those that ATen calls for another of its own too."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        work()
    return sum(event.name.startswith("aten::") for event in profiler.events() or ())


def count_flop(work: Callable[[], object]) -> int:
    """Floating-point operations of matrix products, convolutions and attention."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def count_kept(work: Callable[[], object]) -> int:
    """Bytes that the forward passes of a work keep for the backward ones, each memory counted once."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        work()
    return sum(kept.values())
