"""Building no more than was stored: a small file can't make a model that fills the memory.

What a configuration describes is as large as its numbers say, what a file holds is as large as the file. While a
denoiser is built for stored tensors, each tensor that torch makes is counted before there is memory for it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from flowdiff.errors import FlowdiffError

ONE, ONE_TIMES = 16 << 20, 6  # bytes of one tensor that is made, beside so many times those of all that are stored
ALL, ALL_TIMES = 256 << 20, 48  # bytes that are made on the way, in all: zuko's masks are 39 times its weights
CALLS, CALLS_EACH = 20_000, 500  # of torch's functions, and for each tensor


class Budget(TorchDispatchMode):
    """Within it tensors are made until there are far more than were stored.

    Args:
        stored: bytes of the stored tensors.
        count: how many there are.

    Raises:
        FlowdiffError: of what is made in it.
    """

    def __init__(self, stored: int, count: int) -> None:
        super().__init__()
        self.one, self.all = float(ONE + ONE_TIMES * stored), float(ALL + ALL_TIMES * stored)
        self.calls = CALLS + CALLS_EACH * count

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch's wrapper would import all of torch.compile, two seconds, and nothing is compiled in a budget."""
        return False

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> "Budget":
        """That of some tensors."""
        storages = [tensor.untyped_storage() for tensor in state.values()]
        return cls(sum({each.data_ptr(): each.nbytes() for each in storages}.values()), len(state))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        self._spend(4 * count_to_make(func, args, given))
        result = func(*args, **given)
        if isinstance(result, Tensor) and not any(result is each for each in args):
            self._spend(0 if _is_view(result, args) else result.numel() * result.element_size())
        return result

    def _spend(self, size: float) -> None:
        self.calls -= 1
        self.all -= size
        if size > self.one or self.all < 0 or self.calls < 0:
            raise FlowdiffError("its configuration describes a larger model than the file holds tensors for")


def _is_view(result: Tensor, args: Sequence[Any]) -> bool:
    try:
        pointer = result.untyped_storage().data_ptr()
        return any(isinstance(each, Tensor) and each.untyped_storage().data_ptr() == pointer for each in args)
    except RuntimeError:  # it has no memory: a zero of automatic differentiation
        return True


def count_to_make(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> float:
    """How many numbers a function that makes tensors from sizes (empty, zeros, eye, arange, …) is about to make."""
    schema = getattr(func, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema is not None else []
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    size = given.get("size", given.get("sizes"))
    if isinstance(size, list | tuple) and all(isinstance(n, int) for n in size):
        return float(math.prod(size))
    name = str(func)
    counts = [given[key] for key in ("n", "m", "row", "col", "steps") if isinstance(given.get(key), int)]
    if "eye" in name or "tri" in name:
        return float(math.prod(counts * 2 if len(counts) == 1 else counts))
    if "arange" in name:
        start, end, step = (given.get(key) or default for key, default in (("start", 0), ("end", 0), ("step", 1)))
        return abs(float(end) - float(start)) / max(abs(float(step)), 1e-12)
    return float(max(counts, default=0))
