"""Samples from a checkpoint, written as PNG, grid and npz. The command line around it is `flowdiff.sample`.

The model, its sampler and its schedule come from the checkpoint; what the command line gives wins over them.
Neither the training data nor the run's folder is needed, unless a task (`tasks`) wants images.
"""

import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from flowdiff.data.folders import list_names
from flowdiff.data.labels import resolve_labels, typed_labels
from flowdiff.errors import ConfigError
from flowdiff.evaluation.pictures import density_scatter, image_grid, save_png
from flowdiff.files import make_folder, write_json, write_whole
from flowdiff.model.construction import build
from flowdiff.model.opening import density_of, load_data, open_model
from flowdiff.model.requests import ClassLabel, DrawRequest, spell_out
from flowdiff.options import Range, Recipe
from flowdiff.samplers.batched import Drawn, seeds_from
from flowdiff.tasks.base import Request, Task


@dataclass
class SampleRequest(DrawRequest):
    """conf/sample.yaml.

    Attributes:
        num_samples: None: 16 images, or 2,000 points; of a task: rows of its picture.
        class_label: see `data.labels.Labels`; None: each class in turn, or the images' own.
        mask: of task=inpaint.
        task: None: plain samples.
    """

    num_samples: Annotated[int, Range(1, 10_000_000)] | None = None
    class_label: ClassLabel = None
    mask: str | None = None
    task: Recipe[Task] | None = None


def draw(request: SampleRequest) -> dict[str, Any]:
    """Draw and write samples.

    Returns:
        `output_dir`, `grid` (or `scatter`) and `npz` (paths), and the conditions of the samples; of a task
        also what it has measured.
    """
    task = build_task(request)
    drawing = Drawing(request)
    return drawing.draw() if task is None else drawing.perform(task)


def build_task(request: SampleRequest) -> Task | None:
    """The task that is asked for, None for plain sampling.

    Raises:
        ConfigError: it is none, one of its settings is wrong, or `mask` is given to a task without one.
    """
    if request.mask is not None and "mask" not in (spell_out(request.task) or {}):
        raise ConfigError("mask", request.mask, "needs task=inpaint")
    return None if request.task is None else build(request.task, Task)


class Drawing:
    """Samples of one model, in a folder.

    Attributes:
        request: what is asked for.
        model, batched: the model, and how it is sampled.
        classes: that are asked for; None: all.
        folder: of the results, made where there is something to put into it.
    """

    def __init__(self, request: SampleRequest) -> None:
        self.request = request
        self.model, self.batched = open_model(request)

    @property
    def classes(self) -> Any:
        return typed_labels(self.request.class_label, self.model.class_names)

    @functools.cached_property
    def folder(self) -> Path:
        return make_folder(self.request.output_dir, "output_dir")

    def draw(self) -> dict[str, Any]:
        """New images or points."""
        model, images = self.model, self.model.has_images
        n = self.request.num_samples or (16 if images else 2000)
        wanted = "balanced" if self.request.class_label is None else self.classes
        labels = resolve_labels(wanted, n, model.num_classes, names=model.class_names)
        seeds, folder = seeds_from(self.request.seed, n), self.folder
        drawn = self.batched.draw(labels, seeds)
        conditions = self.list_conditions(drawn, labels, n)
        written = self.write_images(drawn.x, labels, seeds) if images else self.write_points(drawn, labels, seeds)
        write_json(folder / "samples.json", conditions)
        _report(folder, n, "images" if images else "points", labels, conditions, written, drawn.statistics)
        return {"output_dir": str(folder), **{k: str(v) for k, v in written.items()}, **conditions}

    def perform(self, task: Task) -> dict[str, Any]:
        """Do a task, write and print what came of it."""
        request, model = self.request, self.model
        data = functools.cache(lambda: load_data(model, request.data_root))
        wanted, folder = self.classes, self.folder
        result = task(model, self.batched, Request(request.num_samples, wanted, request.seed, data))
        picture = image_grid(model.to_uint8(result.picture.nan_to_num()), columns=len(result.columns))
        written = self.write_images(result.x, result.labels, result.seeds, picture, result.arrays)
        conditions = (
            self.list_conditions(result.drawn, result.labels, len(result.x)) | {"task": task.name} | result.measured
        )
        write_json(folder / "samples.json", conditions)
        rows = len(result.picture) // len(result.columns)
        how = "{sampler}, {num_steps} steps, {nfe:g} evaluations each".format(**conditions)
        print(f"{task.name}: {len(result.x)} images of {model.data}, {how}")
        print("\n".join(result.report))
        print(f"output_dir: {folder}")
        print(f"npz: {written['npz']}")
        print(f"grid: {written['grid']} ({rows} rows; columns: {', '.join(result.columns)})")
        return {"output_dir": str(folder), **{k: str(v) for k, v in written.items()}, **conditions}

    def list_conditions(self, drawn: Drawn, labels: Tensor | None, n: int) -> dict[str, Any]:
        """How the samples were made, and of which classes; says so if some are not finite."""
        if drawn.nonfinite:
            print(f"warning: {drawn.nonfinite} of {n} samples are not finite", file=sys.stderr)
        return drawn.conditions | {
            "ckpt_path": self.request.ckpt_path,
            "weights": self.model.weights,
            "data": self.model.data,
            "class_names": self.model.class_names,
            "labels": None if labels is None else labels.tolist(),
            "seed": self.request.seed,
            "n": n,
            "nonfinite": drawn.nonfinite,
        }

    def write_images(
        self,
        x: Tensor,
        labels: Tensor | None,
        seeds: Tensor,
        picture: Tensor | None = None,
        arrays: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Path]:
        """Each image, all in samples.npz with `arrays` beside them, and grid.png: `picture`, or all of them."""
        folder, images = self.folder, self.model.to_uint8(x.nan_to_num())
        earlier = len(list(folder.glob("[0-9]*.png")))
        if earlier > len(images):
            count = earlier - len(images)
            print(f"note: {folder} holds {count} images of an earlier call beside these", file=sys.stderr)
        paths = {"npz": folder / "samples.npz", "grid": folder / "grid.png"}
        _save_npz(paths["npz"], {"images": images.permute(0, 2, 3, 1), **(arrays or {})}, labels, seeds)
        for i, image in enumerate(images):
            save_png(image, folder / f"{i:06d}.png")
        save_png(image_grid(images) if picture is None else picture, paths["grid"])
        return paths

    def write_points(self, drawn: Drawn, labels: Tensor | None, seeds: Tensor) -> dict[str, Path]:
        """All in samples.npz, and scatter.png."""
        model = self.model
        paths = {"npz": self.folder / "samples.npz", "scatter": self.folder / "scatter.png"}
        _save_npz(paths["npz"], {"points": drawn.x}, labels, seeds)
        sigma = drawn.conditions["sigma_min"]
        density = density_of(model, sigma, labels) if model.has_density and model.normalized else None
        over = f", over log p at sigma {sigma:g}" if density else ""
        title = f"{model.data}: {len(drawn.x)} samples, {drawn.conditions['sampler']}{over}"
        save_png(density_scatter(drawn.x, density, title, labels), paths["scatter"])
        return paths


def _save_npz(path: Path, arrays: Mapping[str, Tensor], labels: Tensor | None, seeds: Tensor) -> None:
    """`labels` is -1 where there is no class."""
    labels = torch.full_like(seeds, -1) if labels is None else labels
    found: dict[str, Any] = {
        key: value.cpu().numpy() for key, value in {**arrays, "labels": labels, "seeds": seeds}.items()
    }
    write_whole(path, lambda file: np.savez_compressed(file, **found))


def _report(
    folder: Path,
    n: int,
    what: str,
    labels: Tensor | None,
    conditions: Mapping[str, Any],
    written: Mapping[str, Path],
    statistics: Mapping[str, Any],
) -> None:
    drawn = [] if labels is None else sorted(set(labels.tolist()))
    names = [name for c, name in enumerate(conditions["class_names"] or ()) if c in drawn and name != str(c)]
    classes = (f"classes {drawn}" if drawn else "no class") + (f" ({list_names(names)})" if names else "")
    print(
        f"{n} {what} of {conditions['data']}, {classes}, seeds {conditions['seed']} to {conditions['seed'] + n - 1}: "
        f"{conditions['sampler']}, {conditions['schedule']}, {conditions['num_steps']} steps, "
        f"{conditions['nfe']:g} evaluations each, guidance {conditions['guidance_scale']:g}, "
        f"{conditions['weights']} weights"
    )
    if statistics:
        print(f"{conditions['sampler']}: " + ", ".join(f"{key} {_shown(value)}" for key, value in statistics.items()))
    print(f"output_dir: {folder}")
    for name, path in written.items():
        print(f"{name}: {path}")


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{key}: {each:g}" for key, each in value.items()) + ")"
    return f"{value:g}"
