"""Samples in batches, each a function of its own seed and label.

Sample i draws every normal variate it needs from a generator seeded with seed_i, and the network always works
on tiles of the same number of rows (the last one filled up): the arithmetic of a row is then the same
whatever the batch size, because matrix kernels choose their order of summation by the number of rows. Hence

    x_i = sampler(D, noise(seed_i), sigmas, label_i)

does not depend on `batch_size` nor on how many samples are asked for, bit for bit on one machine. The idea
of one generator a sample is EDM's (Karras et al. 2022, https://github.com/NVlabs/edm,
`StackedRandomGenerator`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowdiff.data.labels import resolve_labels
from flowdiff.denoisers.compiled import Compiled
from flowdiff.denoisers.memory import rows_that_fit
from flowdiff.denoisers.wrappers import Clipped, Counted, Guided, Tiled
from flowdiff.errors import ConfigError, FlowdiffError, at_least
from flowdiff.progress import Progress
from flowdiff.samplers.base import OTHERS, Sampler, Walk
from flowdiff.samplers.noise import IndexedNoise, NoiseSource
from flowdiff.samplers.schedules import Schedule


@dataclass(frozen=True, eq=False)
class Drawn:
    """Samples, and how they came about.

    Attributes:
        x: (n, ...) float32 on the CPU.
        more: what was found beside them, by name, a row a sample, on the CPU.
        nfe: network evaluations, inversions too, that each sample took.
        evaluations: the same apart: `nfe_forward`, `nfe_gradient`, `inversions`; `nfe_schedule`, in all, of a schedule
            that is made from the model.
        statistics: what the sampler reports.
        nonfinite: samples that hold a NaN or an infinity.
        conditions: under what they were made: plain values, for metrics.json and captions.
    """

    x: Tensor
    more: dict[str, Tensor] = field(default_factory=dict)
    nfe: float = 0.0
    evaluations: dict[str, int] = field(default_factory=dict)
    statistics: dict[str, Any] = field(default_factory=dict)
    nonfinite: int = 0
    conditions: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Batch:
    """What is known where the samples of one batch are made.

    Attributes:
        denoiser: as it is sampled: guided, and held to the data's range.
        noise: standard normals (m, *shape) at each call, each row's of its own seed.
        sigmas: the levels that the sampler visits, (num_steps + 1,).
        labels: (m,) on the device, or None.
        rows: (m,) int64, the samples' numbers among all n; the last one is repeated up to whole tiles.
        device: where the network is.
        walk: a new one of the sampler.
        advance: to be called after each step.
    """

    denoiser: Any
    noise: NoiseSource
    sigmas: Tensor
    labels: Tensor | None
    rows: Tensor
    device: torch.device
    walk: Walk
    advance: Callable[[], None]

    def sample(
        self, noise: NoiseSource | None = None, correct: Callable[[Tensor, float], Tensor] | None = None
    ) -> Tensor:
        """Go the sampler's walk, (m, *shape), with other noise than the seeds' if it is given."""
        noise = noise or self.noise
        return self.walk(self.denoiser, noise, self.sigmas, self.labels, lambda _step: self.advance(), correct)


BatchFunction = Callable[[Batch], tuple[Tensor, Mapping[str, Tensor]]]
"""Makes the samples of one batch, (m, ...), and what else is to be known of them, by name, a row a sample."""


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


@dataclass(frozen=True, eq=False)
class BatchedSampler:
    """Draws any number of samples of one denoiser with one sampler. It keeps nothing of a draw.

    Args:
        denoiser: what is sampled; threads may share it once it is in eval mode.
        sampler: one of `samplers`.
        schedule: one of `samplers.schedules`.
        guidance_scale: D_null + w (D_c - D_null); w = 1 is no guidance.
        clip: bounds of the data that D is held to, (-1, 1) for images; None: not held.
        batch_size: samples that are made together, rounded up to whole tiles.
        tile: rows that the network sees at once; a smaller one needs less memory. None: `default_tile`, or as many as
            fit (`denoisers.memory`).
        compile: the network by torch.compile (`denoisers.compiled`).
    """

    denoiser: Any
    sampler: Sampler
    schedule: Schedule
    guidance_scale: float = 1.0
    clip: tuple[float, float] | None = None
    batch_size: int = 256
    tile: int | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        for key, value in (("batch_size", self.batch_size), ("tile", self.tile)):
            if value is not None:
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

    @cached_property
    def rows(self) -> int:
        """Rows that the network sees at once."""
        if self.tile is not None:
            return self.tile
        shape = self.denoiser.shape
        return rows_that_fit(self.denoiser, shape, default_tile(shape), _device_of(self.denoiser))

    def draw(
        self,
        labels: Tensor | None,
        seeds: Tensor | Iterable[int],
        quiet: bool = False,
        what: str = "sampling",
    ) -> Drawn:
        """Samples for the given seeds.

        Args:
            labels: (n,) int64, or None for the null class.
            seeds: n integers.
            quiet: no progress.
            what: what the progress bar calls it.

        Returns:
            x (n, *shape) in the model's space ([-1, 1] for images), and how it was made.
        """

        def sample(batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
            x = batch.sample()
            return x if self.clip is None else x.clamp(*self.clip), {}  # not every last step returns D

        return self.each(sample, labels, seeds, quiet=quiet, what=what)

    @torch.no_grad()
    def each(
        self,
        function: BatchFunction,
        labels: Tensor | None,
        seeds: Tensor | Iterable[int],
        steps: int | None = None,
        quiet: bool = False,
        what: str = "sampling",
    ) -> Drawn:
        """`function` of one batch after the other, and its rows together.

        Args:
            function: makes the samples of a batch, by `Batch.sample` or otherwise.
            labels, seeds, quiet, what: as for `draw`.
            steps: how often `function` calls `advance` in a batch; None: once in each step of the sampler.
        """
        seeds = torch.as_tensor(seeds if isinstance(seeds, Tensor) else list(seeds), dtype=torch.int64)
        if not len(seeds):
            raise FlowdiffError("0 samples were asked for: at least 1 is needed")
        n, size = len(seeds), self.rows * -(-min(self.batch_size, len(seeds)) // self.rows)
        if labels is not None and len(labels) != n:
            raise FlowdiffError(f"{len(labels)} labels for {n} seeds: one each is needed")
        steps, batches = steps or self.sampler.num_steps, -(-n // size)
        sigmas, device = self.sigmas(), _device_of(self.denoiser)
        counted = self._count()
        denoiser = self._guide_and_clip(counted)
        found, records, nonfinite = Rows(n), Rows(n), 0
        with _eval_mode(self.denoiser), Progress(what, steps * batches, quiet=quiet) as progress:
            for start in range(0, n, size):
                rows = fill_up(torch.arange(n)[start : start + size], self.rows)
                classes = None if labels is None else labels[rows].to(device)
                noise = IndexedNoise(seeds[rows].tolist(), tuple(self.denoiser.shape), device)
                walk = self.sampler.walk()
                batch = Batch(denoiser, noise, sigmas, classes, rows, device, walk, progress.advance)
                x, more = function(batch)
                found.put(start, {**more, "x": x.float()})
                records.put(start, walk.records)
                nonfinite += int((~x[: n - start].float().flatten(1).isfinite().all(1)).sum())
                progress.advance(steps * (start // size + 1) - progress.done)
        nfe = (counted.nfe + counted.inversions) / batches  # every row of a batch takes part in each call
        evaluations = self._fitted.evaluations | {
            "nfe_forward": counted.forward // batches,
            "nfe_gradient": counted.gradient // batches,
            "inversions": counted.inversions // batches,
        }
        statistics = self.sampler.report(records.values)
        conditions = self._conditions(nfe, evaluations) | statistics
        return Drawn(found.values.pop("x"), found.values, nfe, evaluations, statistics, nonfinite, conditions)

    def _conditions(self, nfe: float, evaluations: Mapping[str, int]) -> dict[str, Any]:
        start = self.sampler.sigma_start
        return {
            "sampler": self.sampler.name,
            "schedule": self.schedule.name,
            "num_steps": self.sampler.num_steps,
            "nfe": round(nfe, 2),
            **evaluations,
            "sigma_min": float(self.schedule.sigma_min),
            "sigma_max": float(self.sigmas()[0]),
            "sigma_start": None if start is None else float(start),
            "guidance_scale": float(self.guidance_scale),
        }

    def _count(self) -> Counted:
        """The denoiser, tile by tile, with a counter at 0."""
        denoiser = Compiled(self.denoiser) if self.compile else self.denoiser
        return Counted(Tiled(denoiser, self.rows))

    def _guide_and_clip(self, denoiser: Any) -> Any:
        """The denoiser as it is sampled: guided, and held to the data's range."""
        if self.guidance_scale != 1:
            denoiser = Guided(denoiser, self.guidance_scale)
        return denoiser if self.clip is None else Clipped(denoiser, *self.clip)

    def sigmas(self) -> Tensor:
        """The noise levels that the sampler visits: (num_steps + 1,), decreasing, the last one 0."""
        return self.sampler.sigmas(self._fitted.schedule)

    @cached_property
    def _fitted(self) -> "Fitted":
        """The schedule for this model as it is sampled: the same whatever samples are asked for."""
        device = _device_of(self.denoiser)
        counted = self._count()
        labels = resolve_labels("balanced", FIT_ROWS, self.denoiser.num_classes)
        noise = IndexedNoise(range(FIT_ROWS), tuple(self.denoiser.shape), device)
        with torch.no_grad(), _eval_mode(self.denoiser):
            schedule = self.schedule.fit(
                self._guide_and_clip(counted), noise, None if labels is None else labels.to(device)
            )
        return Fitted(schedule, {"nfe_schedule": counted.nfe * FIT_ROWS} if counted.nfe else {})


class Fitted(NamedTuple):
    """A schedule as it is for a model, and the evaluations that this took."""

    schedule: Schedule
    evaluations: dict[str, int]


class Rows:
    """Tensors of n rows each, by name, filled batch by batch: they are made once, and nothing else is kept."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.values: dict[str, Tensor] = {}

    def put(self, start: int, batch: Mapping[str, Tensor]) -> None:
        """Put a batch's rows at `start`; those beyond the n-th only fill a tile up."""
        for key, value in batch.items():
            own = value[: self.n - start].cpu()
            if key not in self.values:
                self.values[key] = own.new_empty(self.n, *own.shape[1:])
            self.values[key][start : start + len(own)] = own


@contextmanager
def _eval_mode(module: Any) -> Iterator[None]:
    """The module in eval mode, and then as it was."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def fill_up(rows: Tensor, tile: int) -> Tensor:
    """`rows` with its last one repeated up to a multiple of `tile`."""
    return torch.cat([rows, rows[-1:].expand(-len(rows) % tile)])


def _device_of(module: Any) -> torch.device:
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")
