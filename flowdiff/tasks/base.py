"""The contract of a task: a model, its sampler and a request to images, a picture of them and what was measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from flowdiff.data.base import ImageData
from flowdiff.data.labels import Labels
from flowdiff.errors import ConfigError, FlowdiffError, at_least
from flowdiff.model.api import Model
from flowdiff.options import snake_case
from flowdiff.samplers.batched import BatchedSampler, Drawn


@dataclass
class Request:
    """What the command line wants.

    Attributes:
        num_samples: rows of the picture; None: as many as the task likes.
        class_label: see `data.labels.Labels`; None: the task's own choice.
        seed: result i has the seed `seed + i`.
        data: loads the dataset that the model was trained on; called only by tasks that need images.
    """

    num_samples: int | None
    class_label: Labels
    seed: int
    data: Callable[[], ImageData]


@dataclass
class TaskResult:
    """What a task has made.

    Attributes:
        drawn: how it was drawn; its `conditions` go to samples.json.
        x: (N, C, H, W) on the CPU, in [-1, 1].
        labels: (N,) int64, or None.
        seeds: (N,) int64.
        picture: (R·columns, C, H, W), shown row by row.
        columns: what stands in each column of the picture, in words.
        measured: plain values for samples.json, on top of the conditions.
        report: lines to print.
        arrays: more for samples.npz.
    """

    drawn: Drawn
    x: Tensor
    labels: Tensor | None
    seeds: Tensor
    picture: Tensor
    columns: list[str]
    measured: dict[str, Any]
    report: list[str]
    arrays: dict[str, Tensor] = field(default_factory=dict)


class Task:
    """Base of the tasks of conf/task. One is called once."""

    rows = 8
    """Rows of the picture where the request leaves it open."""

    def __call__(self, model: Model, batched: BatchedSampler, request: Request) -> TaskResult:
        """Do it.

        Args:
            model: from a checkpoint.
            batched: the sampler that the checkpoint and the command line describe.
            request: how many, of which class, from which seed, and where images are.

        Raises:
            FlowdiffError: the model can't do this, or a setting is wrong.
        """
        raise NotImplementedError

    @property
    def name(self) -> str:
        """The task's name in the configuration."""
        return snake_case(type(self).__name__)

    def need_images(self, model: Model) -> None:
        """Refuse a model of points."""
        if not model.has_images:
            raise ConfigError("task", self.name, f"needs a model of images, and {model.data} are points")

    def need_pixels(self, model: Model) -> None:
        """Refuse a model of points or of latents."""
        self.need_images(model)
        if model.levels is None:
            raise ConfigError("task", self.name, "needs a model of pixels, and this one is of latents")

    def need_inverse(self, model: Model) -> None:
        """Refuse a model that can't be inverted."""
        if not model.has_inverse:
            kind = type(model.denoiser).__name__
            raise ConfigError("task", self.name, f"needs a flow with an inverse, and this {kind} has none")


@dataclass
class Chosen:
    """Images of one split.

    Attributes:
        x: (n, C, H, W), the middle of each pixel's bin, in [-1, 1].
        labels: (n,) int64.
        index: (n,) int64, their numbers in the split.
    """

    x: Tensor
    labels: Tensor
    index: Tensor


def choose_images(
    request: Request, model: Model, split: str, index: int | Sequence[int] | None, rows: int, each: int = 1
) -> Chosen:
    """Images of a split by number, `each` of them for each row of a picture.

    Args:
        request: its `num_samples` is the number of rows, unless `index` is a list.
        model: of images of the same shape.
        split: train, val or test.
        index: the numbers of the images; one number: that of the first; None: 0.
        rows: how many where the request leaves it open.
        each: images a row.

    Raises:
        ConfigError: there is no such image or split.
    """
    data = request.data()
    if tuple(data.shape) != model.shape:
        raise FlowdiffError(f"dataset={data.name}: its images have the shape {tuple(data.shape)}, not {model.shape}")
    k, labels = data.encoded(split)
    if isinstance(index, Sequence):
        numbers = list(index)
        if request.num_samples is not None and request.num_samples * each != len(numbers):
            raise ConfigError("num_samples", request.num_samples, f"task.index has {len(numbers)} images: leave it out")
    else:
        first = at_least("task.index", 0 if index is None else index, 0)
        numbers = list(range(first, first + each * (request.num_samples or rows)))
    if not numbers or len(numbers) % each:
        raise ConfigError("task.index", index, f"must hold {each} image{'s' * (each > 1)} for each row")
    for i in numbers:
        if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < len(k):
            raise ConfigError("task.index", i, f"the {split} split has the images 0 to {len(k) - 1}")
    chosen = torch.tensor(numbers)
    return Chosen(data.to_centres(k[chosen]), labels[chosen].long(), chosen)
