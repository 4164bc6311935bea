"""Samples in batches, each a function of its own seed and label.

Sample i draws every normal variate it needs from a generator seeded with seed_i, and the network always works
on tiles of the same number of rows (the last one filled up): the arithmetic of a row is then the same
whatever the batch size, because matrix kernels choose their order of summation by the number of rows. Hence

    x_i = sampler(D, noise(seed_i), sigmas, label_i)

does not depend on `batch_size` nor on how many samples are asked for, bit for bit on one machine. The idea
of one generator a sample is EDM's (Karras et al. 2022, https://github.com/NVlabs/edm,
`StackedRandomGenerator`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from flowdiff.data.labels import resolve_labels
from flowdiff.denoisers.wrappers import Clipped, Counted, Guided, Tiled
from flowdiff.errors import ConfigError, FlowdiffError, at_least
from flowdiff.progress import Progress
from flowdiff.samplers.base import OTHERS, NoiseSource, Sampler
from flowdiff.samplers.noise import IndexedNoise
from flowdiff.samplers.schedules import Schedule

Batch = Callable[[Any, NoiseSource, Tensor | None, Tensor, Callable[[], None]], Tensor]
"""What makes the samples of one batch, see `BatchedSampler.each`."""


def seeds_from(seed: int, n: int) -> Tensor:
    """Seeds `seed`, `seed + 1`, …: (n,) int64. Image 5 of seed 0 is image 0 of seed 5."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0 or seed + n > 2**32:
        raise ConfigError("seed", seed, "must be an integer from 0 to 2^32 - 1 - num_samples")
    return torch.arange(seed, seed + n, dtype=torch.int64)


def default_tile(shape: Sequence[int]) -> int:
    """512 points, 64 images of 8×8, 32 of 28×28 or larger, fewer above 2^16 numbers: a small sample is cheap, a call
    is not."""
    numbers = prod(shape)
    return max(1, min(32, (1 << 21) // numbers), min(512, 4096 // numbers))


FIT_ROWS = 64
"""Samples on which a schedule that is made from the model measures it."""


@dataclass
class BatchedSampler:
    """Draws any number of samples of one denoiser with one sampler.

    Args:
        denoiser: what is sampled.
        sampler: one of `samplers`.
        schedule: one of `samplers.schedules`.
        guidance_scale: D_null + w (D_c - D_null); w = 1 is no guidance.
        clip: bounds of the data that D is held to, (-1, 1) for images; None: not held.
        batch_size: samples that are made together, rounded up to whole tiles.
        tile: rows that the network sees at once; a smaller one needs less memory. None: `default_tile`.
    """

    denoiser: Any
    sampler: Sampler
    schedule: Schedule
    guidance_scale: float = 1.0
    clip: tuple[float, float] | None = None
    batch_size: int = 256
    tile: int | None = None
    nfe: float = field(default=0.0, init=False)
    """Network evaluations, inversions too, that each sample of the last call took."""
    evaluations: dict[str, int] = field(default_factory=dict, init=False)
    """The same apart: `nfe_forward`, `nfe_gradient`, `inversions`; `nfe_schedule`, in all, of one that is
    made from the model."""
    statistics: dict[str, Any] = field(default_factory=dict, init=False)
    """What the sampler reports of the last call."""
    nonfinite: int = field(default=0, init=False)
    """Samples of the last call that hold a NaN or an infinity."""

    def __post_init__(self) -> None:
        self.tile = default_tile(self.denoiser.shape) if self.tile is None else self.tile
        for key, value in (("batch_size", self.batch_size), ("tile", self.tile)):
            at_least(key, value, 1)
        Guided(self.denoiser, self.guidance_scale)  # refuses a wrong scale now, before any work
        if self.guidance_scale != 1 and self.denoiser.num_classes == 0:
            raise ConfigError(
                "guidance_scale", self.guidance_scale, "this model has no classes to guide by: leave it at 1"
            )
        lacking = self.sampler.lacks(self.denoiser)
        if lacking is not None:
            raise ConfigError(
                "sampler",
                self.sampler.name,
                f"needs a flow with {'an' if lacking == 'inverse' else 'a'} {lacking}, and this "
                f"{type(self.denoiser).__name__} has none: choose {OTHERS}",
            )
        self._schedule: Schedule | None = None

    def __call__(
        self,
        labels: Tensor | None,
        seeds: Tensor | Iterable[int],
        quiet: bool = False,
        what: str = "sampling",
    ) -> Tensor:
        """Samples for the given seeds.

        Args:
            labels: (n,) int64, or None for the null class.
            seeds: n integers.
            quiet: no progress.
            what: what the progress bar calls it.

        Returns:
            (n, *shape) on the CPU, in the model's space ([-1, 1] for images).
        """
        sigmas = self.sigmas()

        def walk(
            denoiser: Any, noise: NoiseSource, classes: Tensor | None, rows: Tensor, advance: Callable[[], None]
        ) -> Tensor:
            x = self.sampler(denoiser, noise, sigmas, classes, callback=lambda _step: advance())
            return x if self.clip is None else x.clamp(*self.clip)  # not every last step returns D

        return self.each(walk, labels, seeds, len(sigmas) - 1, quiet, what)

    @torch.no_grad()
    def each(
        self,
        function: Batch,
        labels: Tensor | None,
        seeds: Tensor | Iterable[int],
        steps: int,
        quiet: bool = False,
        what: str = "sampling",
    ) -> Tensor:
        """`function(denoiser, noise, labels, rows, advance)` of one batch after the other.

        Args:
            function: is given the denoiser as it is sampled, the noise of the batch's seeds, its labels, its row
                numbers among all n (int64, on the device, the last one repeated up to whole tiles) and what it calls
                after each step; returns a tensor with a row for each.
            labels, seeds, quiet, what: as for sampling.
            steps: how often `function` calls `advance` in a batch.

        Returns:
            What it returned, (n, ...) float32 on the CPU.
        """
        seeds = torch.as_tensor(seeds if isinstance(seeds, Tensor) else list(seeds), dtype=torch.int64)
        if not len(seeds):
            raise FlowdiffError("0 samples were asked for: at least 1 is needed")
        tile = self.tile or 1
        n, size = len(seeds), tile * -(-min(self.batch_size, len(seeds)) // tile)
        if labels is not None and len(labels) != n:
            raise FlowdiffError(f"{len(labels)} labels for {n} seeds: one each is needed")
        device = _device_of(self.denoiser)
        counted = Counted(Tiled(self.denoiser, tile))
        denoiser = self._held(counted)
        out: Tensor | None = None  # made once, for all: memory grows by the samples themselves and by nothing else
        batches, self.nonfinite = 0, 0
        records: list[dict[str, Tensor]] = []
        self.sampler.reset()  # a function that doesn't call it shall not find an earlier call's records
        with _evaluating(self.denoiser), Progress(what, steps * -(-n // size), quiet=quiet) as progress:
            for i in range(0, n, size):
                rows = _filled(torch.arange(n)[i : i + size], tile)
                own = min(size, n - i)
                classes = None if labels is None else labels[rows].to(device)
                noise = IndexedNoise(seeds[rows].tolist(), tuple(self.denoiser.shape), device)
                x = function(denoiser, noise, classes, rows.to(device), progress.advance)
                made = x[:own].float().cpu()
                out = made.new_empty(n, *made.shape[1:]) if out is None else out
                out[i : i + own] = made
                self.nonfinite += int((~made.flatten(1).isfinite().all(1)).sum())
                batches += 1
                records.append({key: record[:own].cpu() for key, record in self.sampler.records.items()})
                progress.advance(steps * batches - progress.done)
        assert out is not None
        self._count(counted, batches)
        self.statistics = self.sampler.report({key: torch.cat([r[key] for r in records]) for key in records[0]})
        return out

    def _held(self, denoiser: Any) -> Any:
        """The denoiser as it is sampled: guided, and held to the data's range."""
        if self.guidance_scale != 1:
            denoiser = Guided(denoiser, self.guidance_scale)
        return denoiser if self.clip is None else Clipped(denoiser, *self.clip)

    def _count(self, counted: Counted, batches: int) -> None:
        """Every row of a batch takes part in each call."""
        self.nfe = (counted.nfe + counted.inversions) / batches
        self.evaluations |= {
            "nfe_forward": counted.forward // batches,
            "nfe_gradient": counted.gradient // batches,
            "inversions": counted.inversions // batches,
        }

    def sigmas(self) -> Tensor:
        """The noise levels that the sampler visits: (num_steps + 1,), decreasing, the last one 0."""
        if self._schedule is None:
            self._schedule = self._fitted()
        return self.sampler.sigmas(self._schedule)

    @torch.no_grad()
    def _fitted(self) -> Schedule:
        """The schedule for this model as it is sampled: the same whatever samples are asked for."""
        device = _device_of(self.denoiser)
        counted = Counted(Tiled(self.denoiser, self.tile or 1))
        labels = resolve_labels("balanced", FIT_ROWS, self.denoiser.num_classes)
        noise = IndexedNoise(range(FIT_ROWS), tuple(self.denoiser.shape), device)
        with _evaluating(self.denoiser):
            fitted = self.schedule.fit(self._held(counted), noise, None if labels is None else labels.to(device))
        if counted.nfe:
            self.evaluations["nfe_schedule"] = counted.nfe * FIT_ROWS
        return fitted

    @property
    def conditions(self) -> dict[str, Any]:
        """Under what the samples were made: plain values, for metrics.json and captions."""
        sigmas = self.sigmas()
        start = self.sampler.sigma_start
        return {
            "sampler": self.sampler.name,
            "schedule": self.schedule.name,
            "num_steps": self.sampler.num_steps,
            "nfe": round(self.nfe, 2),
            **self.evaluations,
            "sigma_min": float(self.schedule.sigma_min),
            "sigma_max": float(sigmas[0]),
            "sigma_start": None if start is None else float(start),
            "guidance_scale": float(self.guidance_scale),
            **self.statistics,
        }


@contextmanager
def _evaluating(module: Any) -> Iterator[None]:
    """The module in eval mode, and then as it was."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def _filled(rows: Tensor, tile: int) -> Tensor:
    """`rows` with its last one repeated up to a multiple of `tile`."""
    return torch.cat([rows, rows[-1:].expand(-len(rows) % tile)])


def _device_of(module: Any) -> torch.device:
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")
