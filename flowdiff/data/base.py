"""What every dataset is to the rest of the package: integer images, or points, in three splits."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from flowdiff.data.level_statistics import measure_levels, measure_marginals
from flowdiff.data.loader import Rows, TensorLoader
from flowdiff.data.quantise import centres, dequantise, to_levels, to_uint8
from flowdiff.data.statistics import DataStatistics
from flowdiff.errors import ConfigError, FlowdiffError
from flowdiff.options import Count, Seed, Workers, checked

LARGE = 1 << 26  # numbers in a split from which on it is measured block by block
SPLITS = ("train", "val", "test")
Split = tuple[Tensor, Tensor]


class ImageData:
    """Base of all datasets. A new one is a subclass with `load` and one YAML in conf/dataset.

    A batch is `(k, labels)`: uint8 levels (B, C, H, W) and int64 labels (B,). Labels are always there;
    where `num_classes` is 0 they carry no meaning for the model. Toy data have `levels` None and yield
    float points.

    Args:
        name: how results and errors call the data.
        shape: shape of one sample, (C, H, W) or (2,).
        num_classes: K, labels lie in 0..K−1; 0 for data without classes.
        levels: number L of integer levels of a pixel; None for continuous data.
        batch_size: samples per training step and process.
        seed: fixes the order of the training data (`dataset.seed`; the config ties it to `seed`).
        extractor: the feature extractor in `metrics.extractors` for these images; None if there is none.
        class_names: names of the classes, in the order of the labels.
        num_workers: threads that make batches ahead of the step (`data.loader`).

    Attributes:
        notes: what a user should know of the files, a few lines that a training prints; set by `load`.
    """

    @checked
    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        num_classes: int,
        levels: int | None,
        batch_size: Count = 128,
        seed: Seed = 0,
        extractor: str | None = None,
        class_names: Sequence[str] | None = None,
        num_workers: Workers = 0,
    ) -> None:
        self.name = name
        self.shape = tuple(shape)
        self.num_classes = num_classes
        self.levels = levels
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.extractor = extractor
        self.class_names = list(class_names) if class_names else [str(c) for c in range(num_classes)]
        self.notes: list[str] = []

    # -- to be provided by a dataset ---------------------------------------------------------------

    def load(self) -> dict[str, Split]:
        """Read the data: {"train": (k, labels), "val": …, "test": …}."""
        raise NotImplementedError

    # -- what the rest of the package uses ---------------------------------------------------------

    @property
    def has_images(self) -> bool:
        """Whether samples are images, or can be decoded to images: `to_uint8` works."""
        return self.levels is not None

    @cached_property
    def _splits(self) -> dict[str, Split]:
        """What `load` gives, read once and held to what was announced.

        Raises:
            FlowdiffError: it is something else, or the files can't be read.
        """
        found = self.load()
        for split, (k, labels) in found.items():
            self._check(split, k, labels)
        return found

    def images(self, split: str) -> Split:
        """The whole of one split: levels (N, C, H, W) uint8, or points (N, 2) float32, and labels (N,)."""
        if split not in SPLITS:
            raise ConfigError("split", split, f"must be one of {', '.join(SPLITS)}")
        return self._splits[split]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W) of what `to_uint8` makes."""
        return self.shape

    @property
    def first_stage_facts(self) -> dict[str, Any] | None:
        """What a checkpoint says of the first stage; None: there is none."""
        return None

    def encoded(self, split: str) -> tuple[Rows, Tensor]:
        """What `to_model` and `to_centres` take, and labels: the images, unless a first stage encodes them."""
        return self.images(split)

    def to_model(self, k: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Levels to model space with dequantisation noise; points stay what they are."""
        return k.float() if self.levels is None else dequantise(k, self.levels, generator)

    def to_centres(self, k: Tensor) -> Tensor:
        """Levels to model space without noise; points stay what they are."""
        return k.float() if self.levels is None else centres(k, self.levels)

    def out_of_distribution(self) -> dict[str, Callable[[str], Tensor]]:
        """Images of the same shape and levels that are not from this data set, for `metrics=[ood_auroc]`.

        Returns:
            By name, a function of the split that gives levels (N, C, H, W) uint8; the first is the most telling.
            Here: the own images transposed, where they are square; empty for points.
        """
        if self.levels is None or self.shape[-1] != self.shape[-2]:
            return {}
        return {"transposed": lambda split: self.images(split)[0].mT}

    def measured_rows(self) -> tuple[Tensor, Tensor, float]:
        """What the moments are those of: x (N, *shape) of the training split in model space, labels (N,), and the
        variance of the noise that is added to each coordinate afterwards, dequantisation's. Of more than LARGE
        numbers, as many rows as have them."""
        rows, labels = self.encoded("train")
        n = max(2, LARGE // math.prod(self.shape))
        if len(rows) > n:
            index = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:n].sort().values
            k, labels = rows[index], labels[index]
        else:
            k = self.images("train")[0]
        return self.to_centres(k), labels, 0.0 if self.levels is None else (2 / self.levels) ** 2 / 12

    def statistics(self, num_classes: int) -> DataStatistics:
        """Moments of the dequantised training split; with `num_classes` 0 the labels are not looked at."""
        rows, labels = self.encoded("train")
        if self.levels is not None and len(rows) * math.prod(self.shape) > LARGE:
            given = labels if num_classes else None
            return measure_levels(rows, self.shape, given, num_classes, self.levels)
        x, labels, noise_variance = self.measured_rows()
        found = DataStatistics.from_data(x, labels if num_classes else None, num_classes, noise_variance)
        if self.levels is None:
            return found
        marginals = functools.partial(measure_marginals, rows, math.prod(self.shape), self.levels)
        return replace(found, marginals=marginals)

    def to_uint8(self, x: Tensor) -> Tensor:
        """Model space (N, C, H, W) to uint8 images of the same shape, by way of the levels."""
        if self.levels is None:
            raise FlowdiffError(f"dataset={self.name}: points are not images and have no uint8 form")
        return to_uint8(to_levels(x, self.levels), self.levels)

    def levels_to_uint8(self, k: Tensor) -> Tensor:
        """Levels (N, C, H, W) to uint8 images of the same shape."""
        if self.levels is None:
            raise FlowdiffError(f"dataset={self.name}: points are not images and have no uint8 form")
        return to_uint8(k, self.levels)

    def batches(self, split: str, shuffle: bool | None = None, rank: int = 0, world_size: int = 1) -> TensorLoader:
        """Batches of a split: of the training split all of one size, of the others every row.

        Args:
            split: train, val or test.
            shuffle: a new order in each epoch; None: of the training split alone.
            rank, world_size: this process and the number of processes that share the rows.
        """
        is_train = split == "train"
        return TensorLoader(
            self.encoded(split),
            self.batch_size,
            shuffle=is_train if shuffle is None else shuffle,
            drop_last=is_train,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            num_workers=self.num_workers,
        )

    def _check(self, split: str, k: Tensor, labels: Tensor) -> None:
        if len(k) == 0:
            raise FlowdiffError(f"dataset={self.name}: the {split} split is empty")
        if tuple(k.shape[1:]) != self.shape or len(labels) != len(k):
            raise FlowdiffError(
                f"dataset={self.name}: the {split} split has samples of shape {tuple(k.shape[1:])} and "
                f"{len(labels)} labels for {len(k)} samples, but shape {self.shape} was announced"
            )
        if self.levels is None:
            bad = ~torch.isfinite(k.flatten(1)).all(1)
            if bad.any():
                row = int(bad.nonzero()[0])
                raise FlowdiffError(
                    f"dataset={self.name}: sample {row} of the {split} split is not finite (NaN or inf)"
                )
        elif self.levels <= 255 and int(k.max()) >= self.levels:
            raise FlowdiffError(
                f"dataset={self.name}: a pixel is {int(k.max())}, but levels={self.levels} allows 0..{self.levels - 1}"
            )
        if self.num_classes and not (int(labels.min()) >= 0 and int(labels.max()) < self.num_classes):
            raise FlowdiffError(f"dataset={self.name}: labels must lie in 0..{self.num_classes - 1}")


def read_data(data: object) -> ImageData:
    """The dataset that a configuration describes, with its files read.

    Raises:
        ConfigError: it describes something else.
        FlowdiffError: they can't be read.
    """
    if not isinstance(data, ImageData):
        raise ConfigError("dataset._target_", type(data).__name__, "must be an ImageData")
    data.images("train")
    return data
