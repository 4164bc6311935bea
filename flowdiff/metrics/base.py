"""What a metric is: a callable on an evaluand, returning results and the conditions they were measured under."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowdiff.data.base import ImageData
from flowdiff.data.statistics import DataStatistics
from flowdiff.denoisers.memory import rows_that_fit
from flowdiff.errors import FlowdiffError
from flowdiff.quantities import Quantity, choose, resolve
from flowdiff.samplers.batched import Drawn


@dataclass
class Result:
    """A number and what it was measured on.

    Attributes:
        value: the number.
        n: samples (images, points) behind it.
        conditions: plain values: split, extractor, sampler, nfe, seed, weights, …
        quantity: what the number is, as the metric declares it; `measure` sets it.
    """

    value: float
    n: int
    conditions: dict[str, Any] = field(default_factory=dict)
    quantity: Quantity = Quantity("*", None)

    def to_json(self) -> dict[str, Any]:
        """The entry in metrics.json; a value that is not finite becomes null, which JSON has a word for."""
        value = self.value if math.isfinite(self.value) else None
        return {"value": value, "n": self.n, **self.quantity.entry(), **self.conditions}


@dataclass
class Evaluand:
    """A model under evaluation, with the data and the way of sampling that it is evaluated with.

    Attributes:
        denoiser: see `denoisers.base`; in eval mode, on `device`.
        data: the dataset.
        statistics: moments of the training split, for the Wiener filter.
        sample: `sample(n, labels, seed)` draws n samples, x (n, *shape) in model space; labels (n,) or None. Their
            `conditions` (sampler, schedule, num_steps, nfe, …) are copied into the results.
        sigma_min: the noise level at which likelihoods are taken.
        weights: "ema" or "raw", for the record.
        seed: of the samples and of all noise in the metrics.
        device: where the denoiser lives.
        split: the split evaluated on.
        batch_size: rows per pass through the denoiser, at most: `rows_in_a_pass`.
        compile: log-densities by torch.compile (`denoisers.compiled`).
        progress: called as `progress(what, done, total)`; None is silent.
    """

    denoiser: Any
    data: ImageData
    statistics: DataStatistics | None = None
    sample: Callable[[int, Tensor | None, int], Drawn] | None = None
    sigma_min: float = 0.002
    weights: str = "ema"
    seed: int = 0
    device: torch.device | str = "cpu"
    split: str = "test"
    batch_size: int = 500
    compile: bool = False
    progress: Callable[[str, int, int], None] | None = None
    planned: int = 0
    _drawn: Drawn | None = field(default=None, repr=False)

    def conditions(self, **more: Any) -> dict[str, Any]:
        """What every result says about how it came about."""
        return {
            "dataset": self.data.name,
            "split": self.split,
            "seed": self.seed,
            "weights": self.weights,
            **more,
        }

    @property
    def sample_conditions(self) -> dict[str, Any]:
        """How the samples were made; a metric that draws others (`cost`) does not change it."""
        return {} if self._drawn is None else dict(self._drawn.conditions)

    def real(self, n: int | None = None) -> tuple[Tensor, Tensor]:
        """`n` rows of the split in an order that does not depend on n (all, in the data's order, if
        None).
        """
        k, labels = self.data.images(self.split)
        if n is None:
            return k, labels
        rows = self.rows(min(n, len(k)))
        return k[rows], labels[rows]

    def rows(self, n: int) -> Tensor:
        """The first `n` rows of a fixed permutation of the split, which is repeated where n is larger."""
        total = len(self.data.images(self.split)[1])
        order = torch.randperm(total, generator=torch.Generator().manual_seed(0))
        return order.repeat(-(-n // total))[:n]

    def noised(self, n: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """`n` dequantised rows x0 of the split (all if None) and noise eps, (n, *shape) each, and labels (n,).

        They depend on the seed only: every noise level and every model sees the same x0 and eps.
        """
        k, labels = self.data.encoded(self.split)
        rows = slice(None) if n is None else self.rows(min(n, len(k)))
        k, labels = k[rows], labels[rows]
        generator = torch.Generator().manual_seed(self.seed)
        x0 = self.data.to_model(k, generator)
        return x0, torch.randn(x0.shape, generator=generator), labels

    @cached_property
    def rows_in_a_pass(self) -> int:
        """`batch_size`, fewer of large samples (`rows_at_once`) and where memory is short (`denoisers.memory`); of
        compiled ones no more than the split has.
        """
        shape = self.data.shape
        rows = rows_that_fit(self.denoiser, shape, min(self.batch_size, rows_at_once(shape)), self.device)
        return min(rows, len(self.data.images(self.split)[1])) if self.compile else rows

    def slices(self, n: int, what: str, turn: int = 0, turns: int = 1) -> Iterator[slice]:
        """Slices of at most `rows_in_a_pass` of n rows, in turn `turn` of `turns`; reports the progress."""
        for start in range(0, n, self.rows_in_a_pass):
            stop = min(start + self.rows_in_a_pass, n)
            yield slice(start, stop)
            self.tell(what, turn * n + stop, turns * n)

    def labels(self, labels: Tensor) -> Tensor | None:
        """Labels as the denoiser takes them: None if it has no classes."""
        return labels.to(self.device) if self.denoiser.num_classes else None

    def samples(self, n: int) -> tuple[Tensor, Tensor]:
        """`n` samples (n, *shape) on the CPU and the labels (n,) they were asked for.

        The labels are those of `real(n)`: sampled and real images have the same distribution of classes.
        Samples are drawn once, for the largest n planned, and shared by all metrics.
        """
        if self.sample is None:
            raise ValueError("this evaluand has no sampler")
        if self._drawn is None or len(self._drawn.x) < n:
            total = max(n, self.planned)
            labels = self.data.images(self.split)[1][self.rows(total)]
            self._drawn = self.sample(total, self.labels(labels), self.seed)
        return self._drawn.x[:n], self.data.images(self.split)[1][self.rows(n)]

    def sample_images(self, n: int) -> tuple[Tensor, Tensor, int]:
        """`n` samples as uint8 images, their labels, and how many held a value that is not finite (shown as
        gray).
        """
        x, labels = self.samples(n)
        broken = int((~x.flatten(1).isfinite().all(1)).sum())
        return self.data.to_uint8(torch.nan_to_num(x)), labels, broken

    def tell(self, what: str, done: int, total: int) -> None:
        """Report progress."""
        if self.progress is not None:
            self.progress(what, done, total)


def rows_at_once(shape: Sequence[int]) -> int:
    """100,352 coordinates: 128 images of 28×28, 32 of 3×32×32. A flow's score keeps some 100 numbers of each in every
    one of its steps, and has to fit into a few GB.
    """
    return max(16, 100_352 // math.prod(shape))


class Metric:
    """Base of all metrics. A new one is a subclass and one YAML in conf/metrics.

    Subclasses say what their numbers are (`quantities`: keys, units, which way is better; without them reports give
    no verdict), why they can't be measured (`unfit`), how many samples they will ask for (`num_needed`), and
    measure (`__call__`). `fetches`: it would ask the network for something; such a metric is measured where the
    user's own command line names it.
    """

    fetches: bool = False

    quantities: ClassVar[tuple[Quantity, ...]] = ()

    def keys(self, model: Evaluand) -> list[str]:
        """The keys of what it will report of a model that it fits, as far as they are known before."""
        return [quantity.key for quantity in self.quantities if "*" not in quantity.key]

    def columns(self, model: Evaluand) -> list[str]:
        """Those of them that are columns of TensorBoard's HParams; none where it does not fit."""
        if self.unfit(model) is not None:
            return []
        keys = self.keys(model)
        wanted = (choose(quantity, quantity.column, keys) for quantity in self.quantities if quantity.column)
        return [key for key in wanted if key is not None]

    def unfit(self, model: Evaluand) -> str | None:
        """Why this metric does not apply to the model, in words; None if it does."""
        return None

    def num_needed(self, model: Evaluand) -> int:
        """Samples that the metric will ask for."""
        return 0

    def __call__(self, model: Evaluand) -> dict[str, Result]:
        """Measure: results by their key in metrics.json."""
        raise NotImplementedError


def list_quantities() -> list[Quantity]:
    """What all metrics that are there say: the package's, and those that something else has imported."""
    kinds: list[type[Metric]] = [Metric]
    for kind in kinds:
        kinds += [each for each in kind.__subclasses__() if each not in kinds]
    return [quantity for kind in kinds for quantity in kind.__dict__.get("quantities", ())]


def measure(
    metrics: Mapping[str, Metric], model: Evaluand, failed: dict[str, FlowdiffError] | None = None
) -> tuple[dict[str, Result], dict[str, str]]:
    """Run metrics on one evaluand, with samples drawn once for the largest number asked for.

    Args:
        metrics: by name.
        model: what is measured.
        failed: takes the errors of metrics that could not be measured, so that the others are not lost;
            None: the first error is raised.

    Returns:
        the results, and for each metric that was skipped the reason.
    """
    reasons = {name: metric.unfit(model) for name, metric in metrics.items()}
    fit = {name: metric for name, metric in metrics.items() if reasons[name] is None}
    model.planned = max([0, *(metric.num_needed(model) for metric in fit.values())])
    results: dict[str, Result] = {}
    with torch.no_grad():
        for name, metric in fit.items():
            try:
                found = metric(model)
                quantities = resolve(metric.quantities, list(found))
                results |= {key: replace(result, quantity=quantities[key]) for key, result in found.items()}
            except FlowdiffError as error:
                if failed is None:
                    raise
                failed[name] = error
    return results, {name: reason for name, reason in reasons.items() if reason is not None}
