"""The noise that samplers consume; noise that belongs to a sample, not to a batch.

One generator per sample: sample i consumes the stream of its own seed, so it comes out the same in whatever
batch, order or process it is drawn (the `StackedRandomGenerator` of NVlabs/edm, `generate.py`). The
streams are drawn on the CPU and moved, so that they don't depend on the device either.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

NoiseSource = Callable[[], Tensor]
"""Returns fresh standard normals (n, *shape) at each call, independent from sample to sample."""


class IndexedNoise:
    """A noise source: each call returns fresh standard normals (n, *shape), row i by the seed `seeds[i]`.

    Args:
        seeds: one integer in [0, 2^32) per sample (torch's CPU generator keeps 32 bits of a seed).
        shape: the shape of one sample.
        device: where the noise is wanted.
        dtype: its type; float32 and float64 streams differ.
    """

    def __init__(
        self,
        seeds: Iterable[int],
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.seeds = [int(seed) for seed in seeds]
        bad = [seed for seed in self.seeds if not 0 <= seed < 2**32]
        if bad:
            raise ValueError(f"seeds must be in [0, 2^32), not {bad[0]}")
        self.shape = tuple(shape)
        self.device = torch.device(device)
        self.dtype = dtype
        self._generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]

    def __call__(self) -> Tensor:
        """(n, *shape) standard normals, the next of every stream."""
        noise = torch.empty(len(self.seeds), *self.shape, dtype=self.dtype)
        for row, generator in zip(noise, self._generators, strict=True):
            row.normal_(generator=generator)
        return noise.to(self.device)
