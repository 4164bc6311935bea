"""The metrics of a model: measured, printed as a table, written to metrics.json with their conditions.

Used at the end of a training (`evaluate_run`) and by `python -m flowdiff.evaluate` (`evaluate`).
"""

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowdiff.data.base import ImageData
from flowdiff.data.statistics import DataStatistics
from flowdiff.denoisers.base import Denoiser
from flowdiff.denoisers.memory import rows_that_fit
from flowdiff.errors import ConfigError, FlowdiffError, one_line
from flowdiff.evaluation import tables
from flowdiff.evaluation.comparison import Contender, compare, open_rival
from flowdiff.evaluation.pictures import density_scatter, image_grid, save_png
from flowdiff.evaluation.request import EvaluateRequest
from flowdiff.files import make_folder, write_json
from flowdiff.metrics.base import Evaluand, Metric, measure
from flowdiff.model import checkpoint, safe_construction
from flowdiff.model.api import Model
from flowdiff.model.construction import build, from_config
from flowdiff.model.opening import density_of, load_data, open_model
from flowdiff.options import Recipe
from flowdiff.progress import Progress
from flowdiff.samplers.batched import BatchedSampler, Drawn, default_tile


def evaluate_run(
    path: Path, metrics: Mapping[str, Metric], run_dir: Path, data: ImageData, seed: int, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Measure the model that a training ends with, print the table and where everything is.

    Args:
        path: the checkpoint, whose EMA weights are measured and whose own sampler draws.
        metrics: by name.
        run_dir: takes metrics.json and samples.png.
        data: the run's dataset.
        seed: of the samples, and of all noise in the metrics.
        device: that the run was trained on.

    Returns:
        What is in metrics.json.
    """
    model = Model(*checkpoint.load(path)).to(device)
    batched = from_config(model.denoiser, model.config, model.levels is not None, tile=evaluation_tile(model.denoiser))
    contender = Contender("checkpoint", model, batched, path)
    return report(run_dir, metrics, build_evaluand(contender, data, seed), contender)


def evaluate(request: EvaluateRequest) -> dict[str, Any]:
    """Measure a checkpoint.

    Returns:
        `metrics` (what is in metrics.json) and `output_dir`; with another model beside it also `against`, its
        metrics.
    """
    ours = Contender("checkpoint", *open_model(request), Path(request.ckpt_path))
    rival = open_rival(request, ours)
    for each in (ours, rival):
        if each is not None:
            leave_uncompiled(each)
            tile = evaluation_tile(each.model.denoiser) if request.tile is None else request.tile
            each.batched = replace(each.batched, tile=tile)
    if request.metrics is None:
        metrics = stored_metrics(ours.model.config.get("metrics") or {})
    else:
        metrics = build_metrics(request.metrics)
    if not metrics:
        raise ConfigError("metrics", "[]", "must name at least one, as metrics=[bits_per_dim,fd,denoising]")
    data = load_data(ours.model, request.data_root)
    evaluand = build_evaluand(ours, data, request.seed, request.split, request.batch_size)
    unfit = {name: metric.unfit(evaluand) for name, metric in metrics.items()}
    if all(unfit.values()):
        reasons = "; ".join(f"{name}: {reason}" for name, reason in unfit.items())
        raise ConfigError("metrics", f"[{','.join(metrics)}]", f"nothing of it can be measured here ({reasons})")
    if request.sigma_min is not None:
        evaluand.sigma_min = request.sigma_min
    folder = make_folder(request.output_dir, "output_dir")
    entries = report(folder, metrics, evaluand, ours)
    result = {"metrics": entries, "output_dir": str(folder)}
    if rival is not None:
        result["against"] = report_rival(folder, metrics, evaluand, ours, rival, entries)
    return result


def build_metrics(recipes: Mapping[str, Recipe[Metric] | None]) -> dict[str, Metric]:
    """The metrics that a user names."""
    return {
        name: build(recipe if isinstance(recipe, Recipe) else Recipe[Metric](f"metrics.{name}", recipe), Metric)
        for name, recipe in recipes.items()
        if recipe is not None
    }


def stored_metrics(config: Mapping[str, Any]) -> dict[str, Metric]:
    """The metrics that a checkpoint names: they read no file and fetch nothing. One that would is left out, and that
    is said.
    """
    found = {}
    for name, node in config.items():
        metric = safe_construction.build("metrics", node) if node else None
        if metric is not None and metric.fetches:
            print(f"skipped {name}: it would fetch a network's weights; metrics=[{name}] asks for that", flush=True)
        elif metric is not None:
            found[str(name)] = metric
    return found


def final_columns(metrics: Mapping[str, Metric], denoiser: Denoiser, data: ImageData) -> list[str]:
    """The metrics of TensorBoard's HParams that `evaluate_run` will measure of a model that is yet to be trained."""
    unknown = DataStatistics.from_data(torch.zeros(2, 1), None, 0)  # which metrics fit doesn't depend on the moments
    model = Evaluand(denoiser, data, unknown, sample=lambda n, labels, seed: Drawn(torch.zeros(n, *data.shape)))
    return [name for metric in metrics.values() for name in metric.columns(model)]


def leave_uncompiled(contender: Contender) -> None:
    """Where a model that is to be compiled says why it can't be: say so, and take it as it is written."""
    reason = getattr(contender.model.denoiser, "uncompilable", None)
    if contender.batched.compile and reason:
        print(f"compile=true: {contender.name} is evaluated as it is written: {reason}", flush=True)
        contender.batched = replace(contender.batched, compile=False)


def evaluation_tile(denoiser: Denoiser) -> int:
    """Many samples are drawn: four times the rows of a call from `flowdiff.sample`, fewer where they don't fit."""
    most = min(512, 4 * default_tile(denoiser.shape))
    return rows_that_fit(denoiser, denoiser.shape, most, next(denoiser.parameters()).device)


@dataclass(frozen=True)
class SeededSampler:
    """`sample(n, labels, seed)` of an evaluand.

    Evaluations with different seeds share no sample: sample i has the seed `seed · 1,000,003 + i`.
    """

    batched: BatchedSampler

    def __call__(self, n: int, labels: Tensor | None, seed: int) -> Drawn:
        seeds = (seed * 1_000_003 + torch.arange(n)) % 2**32
        drawn = self.batched.draw(None if labels is None else labels.cpu(), seeds, what="sampling for metrics")
        return replace(drawn, conditions=drawn.conditions | {"nonfinite": drawn.nonfinite})


@dataclass
class Shown:
    """An evaluand's `progress(what, done, total)` as bars or lines, one after the other."""

    current: Progress | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        if self.current is None or self.current.what != what or done < self.current.done:
            self.close()
            self.current = Progress(what, total).__enter__()
        self.current.advance(done - self.current.done)
        if done >= total:
            self.close()

    def close(self) -> None:
        """End the bar that is shown, if there is one."""
        if self.current is not None:
            self.current.__exit__(None, None, None)
            self.current = None


def build_evaluand(
    contender: Contender, data: ImageData, seed: int = 0, split: str = "test", batch_size: int = 500
) -> Evaluand:
    """A model with its data, its way of sampling and the moments of the training split."""
    model, batched = contender.model, contender.batched
    if tuple(data.shape) != model.shape:
        raise FlowdiffError(
            f"dataset={data.name}: its samples have the shape {tuple(data.shape)}, the model's {model.shape}"
        )
    data.images(split)  # says now if there is no such split
    return Evaluand(
        denoiser=model.denoiser,
        data=data,
        statistics=data.statistics(data.num_classes),
        sample=SeededSampler(batched),
        sigma_min=float(batched.schedule.sigma_min),
        weights=model.weights,
        seed=seed,
        device=next(model.parameters()).device,
        split=split,
        batch_size=batch_size,
        compile=batched.compile,
        progress=Shown(),
    )


def report(
    folder: Path,
    metrics: Mapping[str, Metric],
    evaluand: Evaluand,
    contender: Contender,
) -> dict[str, dict[str, Any]]:
    """Measure; write metrics.json and a picture of the samples into `folder`; print what and where."""
    failed: dict[str, FlowdiffError] = {}
    try:
        results, skipped = measure(metrics, evaluand, failed)
    finally:
        if isinstance(evaluand.progress, Shown):
            evaluand.progress.close()
    if failed and not results:
        raise next(iter(failed.values()))
    entries = {name: result.to_json() for name, result in results.items()}
    write_json(folder / "metrics.json", entries, allow_nan=False, default=_refuse)
    print_table(entries, f"{evaluand.data.name}: {evaluand.weights} weights of {contender.path.name}")
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}")
    picture = draw_samples(folder, evaluand, contender)
    print(f"metrics:     {folder / 'metrics.json'}")
    print(f"checkpoint:  {contender.path}")
    print(f"samples:     {picture}")
    boards = sorted({events.parent for events in folder.rglob("events.out.tfevents*")}, key=lambda board: board.parts)
    if boards:  # the first has the others in it
        print(f"TensorBoard: {boards[0]}   (tensorboard --logdir {shlex.quote(str(boards[0]))})")
    for name, error in failed.items():  # after all that could be measured is written
        raise FlowdiffError(f"metrics.{name}: {error}") from error
    return entries


def report_rival(
    folder: Path,
    metrics: Mapping[str, Metric],
    evaluand: Evaluand,
    ours: Contender,
    rival: Contender,
    own: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """`report` on the other model, into a folder in `folder` that has its name, and on both side by side.

    Args:
        own: what is in metrics.json of the checkpoint's model.
    """
    theirs = replace(
        evaluand,
        denoiser=rival.model.denoiser,
        sample=SeededSampler(rival.batched),
        compile=rival.batched.compile,
        weights=rival.model.weights,
        progress=Shown(),
        planned=0,
        _drawn=None,
    )
    place = make_folder(folder / rival.name, "output_dir")
    entries = report(place, metrics, theirs, rival)
    about = {each.name: each.describe() for each in (ours, rival)}
    columns = {ours.name: own, rival.name: entries}
    files = compare(folder, f"{evaluand.data.name}, {evaluand.split} split, seed {evaluand.seed}", columns, about)
    print(f"comparison:  {', '.join(str(file) for file in files)}")
    return entries


def _refuse(value: Any) -> Any:
    raise TypeError(f"a metric's condition must be a plain value, not {type(value).__name__}")


def draw_samples(folder: Path, evaluand: Evaluand, contender: Contender) -> Path:
    """samples.png: a row of ten images for each class (of large images as many as have 2^22 pixels), or points over
    log p.
    """
    path, model = folder / "samples.png", contender.model
    images = model.has_images
    count = max(4, min(100, (1 << 22) // math.prod(evaluand.data.image_shape[1:]))) if images else 1000
    x, labels = evaluand.samples(max(evaluand.planned, count))
    classes = labels if model.num_classes else None
    if not images:
        density = density_of(model, evaluand.sigma_min, classes) if model.normalized else None
        title = f"{model.data}: {contender.batched.sampler.name}" + (
            f", over log p at sigma {evaluand.sigma_min:g}" if density else ""
        )
        save_png(density_scatter(x[:1000], density, title, None if classes is None else classes[:1000]), path)
        return path
    if classes is None or count < 100:
        shown = x[:count]
    else:
        rows = [x[classes == c][:10] for c in range(min(model.num_classes, 10))]
        shown = torch.cat([r for r in rows if len(r) == 10] or [x[:100]])
    save_png(image_grid(evaluand.data.to_uint8(shown.nan_to_num()), 10 if count == 100 else None), path)
    return path


#: Conditions, and how the line above a table says one that is the same for all numbers that have it.
CONDITIONS = {"split": "{} split", "extractor": "features of {}", "sampler": "{}", "nfe": "NFE {}", "seed": "seed {}"}
WIDTH = 80


def print_table(entries: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """A rich table: each value with its standard error, where one is known, and its conditions; those that all share
    stand above it."""
    given = {key: [entry.get(key) for entry in entries.values()] for key in CONDITIONS}
    shared = {key: set(values) - {None} for key, values in given.items()}
    told = "; ".join(CONDITIONS[key].format(_cell(*found)) for key, found in shared.items() if len(found) == 1)
    columns = [key for key, found in shared.items() if len(found) > 1]
    rows = []
    for name, entry in entries.items():
        value, error = entry.get("value"), entry.get("standard_error")
        shown = "not finite" if value is None else f"{value:.4g}"
        cells = [_cell(entry.get(column)) for column in columns]
        rows.append([name, shown, "–" if error is None else f"{error:.2g}", f"{entry.get('n'):,}", *cells])
    header = ["metric", "value", "± s.e.", "n", *("NFE" if column == "nfe" else column for column in columns)]
    print(one_line(title), one_line(told), sep="\n")
    tables.show(header, rows, right=("value", "± s.e.", "n", "NFE"), least=WIDTH)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)
