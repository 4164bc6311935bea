"""How many rows of D fit into the memory that is free.

f(n) are the bytes of the tensors that are alive at once in D of n rows. At each moment of D they are a + bn with its
own a, b ≥ 0, and f is the largest of these, hence

    f(m) ≤ f(n) m/n        for m ≥ n:

from one row on, as many are counted as are certain to fit, until no more are. What is counted are the storages that
torch's operations return. The scratch space of kernels is not seen, nor what allocators keep: half of the memory is
given out.
"""

import math
import re
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SHARE = 0.5  # of the free memory
PLENTY = 1 << 16  # bytes a coordinate, more than D of a flow of conf/ takes: where they fit, nothing is counted


def rows_that_fit(denoiser: Any, shape: Sequence[int], most: int, device: torch.device | str) -> int:
    """`most` rows if D of them takes half of the free memory or less, else a power of two that is certain to.

    Args:
        denoiser: see `denoisers.base`.
        shape: of a sample.
        most: rows that are wanted.
        device: where the denoiser is.
    """
    free = SHARE * free_memory(torch.device(device))
    if most * math.prod(shape) * PLENTY <= free:
        return most
    rows = 1
    while (certain := rows * free / max(count_bytes(denoiser, shape, rows, device), 1)) < most:
        if certain < 2 * rows:
            return rows
        rows = 1 << (int(certain).bit_length() - 1)
    return most


@torch.no_grad()
def count_bytes(denoiser: Any, shape: Sequence[int], n: int, device: torch.device | str) -> int:
    """Of what is alive at once, beside the weights, in D of n rows."""
    x, sigma = torch.zeros(n, *shape, device=device), torch.ones(n, device=device)
    labels = torch.zeros(n, dtype=torch.int64, device=device) if denoiser.num_classes else None
    with Living([*denoiser.parameters(), *denoiser.buffers(), x, sigma]) as living:
        denoiser(x, sigma, labels)
    return living.most


class Living(TorchDispatchMode):
    """Counts the bytes of tensors that are made within it and alive at once: `most`.

    Args:
        known: tensors whose storages don't count.
    """

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in known}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch's wrapper would import all of torch.compile, two seconds, and nothing is compiled here."""
        return False

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._take(tensor.untyped_storage())
        return result

    def _take(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def free_memory(device: torch.device, root: Path = Path("/")) -> float:
    """Bytes that can still be had: on a GPU, or of the machine and of what its control groups (cgroups 1 and 2, of a
    container or a job) grant the process; infinite where that can't be known.

    Args:
        device: the one whose memory it is.
        root: folder of proc and sys.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + cached)
    if device.type != "cpu":
        return math.inf
    available = 1024 * _number(root / "proc/meminfo", r"^MemAvailable:\s*(\d+) kB")
    return min([available, *(_free_in(folder) for folder in _groups(root))])


def _groups(root: Path) -> Iterator[Path]:
    """The folders of the process's control group and of those that it is in."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
            inner = top / path.strip("/")
            yield from (inner, *(folder for folder in inner.parents if folder.is_relative_to(top)))


def _free_in(group: Path) -> float:
    """What a control group grants less what it uses; files that were read and can be dropped are not used."""
    for limit, usage, files in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        granted, used = _number(group / limit, r"^(\d+)"), _number(group / usage, r"^(\d+)")
        if math.isfinite(granted) and math.isfinite(used):
            dropped = _number(group / "memory.stat", rf"^{files} (\d+)")
            return granted - used + (dropped if math.isfinite(dropped) else 0)
    return math.inf


def _number(file: Path, pattern: str) -> float:
    """The number in a line of a file of the kernel's; infinite where there is none."""
    found = re.search(pattern, _read(file), re.M)
    return float(found[1]) if found else math.inf


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
