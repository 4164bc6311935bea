"""What each training computes of its data alone, computed once for the same data: most of the time of a tiny one."""

import functools
import hashlib
from collections.abc import Callable

from flowdiff.data.statistics import Sample
from flowdiff.denoisers.precondition import Gaussianised


def remember(measure: Callable[[Gaussianised, Sample], bool]) -> Callable[[Gaussianised, Sample], bool]:
    """`measure`, once for the same map and sample: what it answers depends on nothing else."""
    known: dict[bytes, bool] = {}

    @functools.wraps(measure)
    def remembered(self: Gaussianised, sample: Sample) -> bool:
        digest = hashlib.sha256(str(self.gaussian_below).encode())
        for tensor in (*self.state_dict().values(), *sample[:3]):
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        if digest.digest() not in known:
            known[digest.digest()] = measure(self, sample)
        return known[digest.digest()]

    return remembered


Gaussianised._begins_worse = remember(Gaussianised._begins_worse)  # type: ignore[method-assign]
