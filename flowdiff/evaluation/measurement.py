"""The metrics of a model: measured, printed as a table, written to metrics.json with their conditions.

Used at the end of a training (`evaluate_run`) and by `python -m flowdiff.evaluate` (`evaluate`).
"""

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from flowdiff.commands.requests import EvaluateRequest, check_request
from flowdiff.data.base import ImageData
from flowdiff.data.statistics import DataStatistics
from flowdiff.denoisers.base import Denoiser
from flowdiff.errors import ConfigError, FlowdiffError
from flowdiff.evaluation import tables
from flowdiff.evaluation.comparison import Rival, compared, opened_rival
from flowdiff.evaluation.pictures import density_scatter, image_grid, save_png
from flowdiff.files import make_folder, write_json
from flowdiff.metrics.base import Evaluand, Metric, measure
from flowdiff.model import safe_construction
from flowdiff.model.api import Model
from flowdiff.model.checkpoint import load as load_checkpoint
from flowdiff.model.construction import from_config, make
from flowdiff.model.opening import data_of, density_of, given_root, opened, output_folder, plain
from flowdiff.progress import Progress
from flowdiff.runs.words import override
from flowdiff.samplers.batched import BatchedSampler, default_tile


def evaluate_run(
    ckpt_path: str, config: Mapping[str, Any], run_dir: Path, data: ImageData | None = None
) -> dict[str, dict[str, Any]]:
    """Measure the model that a training ends with, print the table and where everything is.

    Args:
        ckpt_path: the checkpoint, whose EMA weights are measured.
        config: the run's resolved configuration.
        run_dir: takes metrics.json and samples.png.
        data: the run's dataset; None: it is loaded again.

    Returns:
        What is in metrics.json.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = Model(load_checkpoint(ckpt_path)).to(device)
    batched = from_config(model.denoiser, config, model.levels is not None, tile=evaluation_tile(model.shape))
    metrics = build_metrics(config["metrics"], typed=True)
    evaluand = build_evaluand(model, data or data_of(model), batched, seed=int(config["seed"]))
    return report(run_dir, metrics, evaluand, model, batched, Path(ckpt_path))


def report_autoencoder(
    ckpt_path: str, config: Mapping[str, Any], run_dir: Path, data: ImageData
) -> dict[str, dict[str, Any]]:
    """`training.autoencoder.finish`, and what it has found as a table."""
    from flowdiff.training.autoencoder import finish

    folder, entries = finish(ckpt_path, config, run_dir, data)
    print_table(entries, f"{data.name}: autoencoder, ema weights of {Path(ckpt_path).name}")
    print(f"metrics:         {run_dir / 'metrics.json'}")
    print(f"reconstructions: {run_dir / 'reconstructions.png'}")
    print(f"autoencoder:     {folder}   (experiment=mnist_latent {override('first_stage.path', folder)})")
    return entries


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Measure a checkpoint.

    Args:
        cfg: as in conf/evaluate.yaml.

    Returns:
        `metrics` (what is in metrics.json) and `output_dir`; with another model beside it also `against`, its
        metrics.
    """
    rival = cfg.get("denoiser")
    chosen = None if rival is None else OmegaConf.to_container(rival, resolve=False)
    others = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "denoiser"])
    check_request(EvaluateRequest, {**plain(others), "denoiser": chosen})
    model, batched = opened(cfg)
    if cfg.tile is None:
        batched.tile = evaluation_tile(model.shape)
    rival = opened_rival(cfg, batched)
    own = plain(cfg.get("metrics"))
    wanted = model.config.get("metrics") if own is None else own
    metrics = build_metrics(wanted or {}, typed=own is not None)
    if not metrics:
        raise ConfigError("metrics", "[]", "must name at least one, as metrics=[bits_per_dim,fd,denoising]")
    data = data_of(model, *given_root(cfg))
    evaluand = build_evaluand(model, data, batched, int(cfg.seed), str(cfg.split), int(cfg.batch_size))
    unfit = {name: metric.unfit(evaluand) for name, metric in metrics.items()}
    if all(unfit.values()):
        reasons = "; ".join(f"{name}: {reason}" for name, reason in unfit.items())
        raise ConfigError("metrics", f"[{','.join(metrics)}]", f"nothing of it can be measured here ({reasons})")
    if cfg.sigma_min is not None:
        evaluand.sigma_min = float(cfg.sigma_min)
    folder = output_folder(cfg.output_dir)
    path = Path(cfg.ckpt_path)
    result = {"metrics": report(folder, metrics, evaluand, model, batched, path), "output_dir": str(folder)}
    if rival is not None:
        result["against"] = report_rival(folder, metrics, evaluand, model, path, rival)
    return result


def build_metrics(config: Mapping[str, Any], typed: bool) -> dict[str, Metric]:
    """The metrics of a configuration.

    Args:
        config: by name.
        typed: the user's command line names them. Those that a checkpoint names read no file and fetch nothing: one
            that would is left out, and that is said.
    """
    found = {}
    for name, entry in config.items():
        if not entry:
            continue
        metric = make(entry, f"metrics.{name}") if typed else safe_construction.build("metrics", entry)
        if not isinstance(metric, Metric):
            raise ConfigError(f"metrics.{name}._target_", entry.get("_target_"), "must be a Metric")
        if not typed and metric.fetches:
            print(f"skipped {name}: it would fetch a network's weights; metrics=[{name}] asks for that", flush=True)
            continue
        found[str(name)] = metric
    return found


def final_columns(metrics: Mapping[str, Metric], denoiser: Denoiser, data: ImageData) -> list[str]:
    """The metrics of TensorBoard's HParams that `evaluate_run` will measure of a model that is yet to be trained."""
    unknown = DataStatistics.from_data(torch.zeros(2, 1), None, 0)  # which metrics fit doesn't depend on the moments
    model = Evaluand(denoiser, data, unknown, sample=lambda n, labels, seed: torch.zeros(n, *data.shape))
    return [name for metric in metrics.values() for name in metric.columns(model)]


def evaluation_tile(shape: tuple[int, ...]) -> int:
    """Many samples are drawn: four times the rows of a call from `flowdiff.sample`."""
    return min(512, 4 * default_tile(shape))


@dataclass
class SeededSampler:
    """`sample(n, labels, seed)` of an evaluand.

    Evaluations with different seeds share no sample: sample i has the seed `seed · 1,000,003 + i`.
    """

    batched: BatchedSampler
    nonfinite: int = 0

    def __call__(self, n: int, labels: Tensor | None, seed: int) -> Tensor:
        seeds = (seed * 1_000_003 + torch.arange(n)) % 2**32
        x = self.batched(None if labels is None else labels.cpu(), seeds, what="sampling for metrics")
        self.nonfinite = self.batched.nonfinite
        return x

    @property
    def conditions(self) -> dict[str, Any]:
        """How the samples were made, for metrics.json."""
        return self.batched.conditions | {"nonfinite": self.nonfinite}


@dataclass
class Shown:
    """An evaluand's `progress(what, done, total)` as bars or lines, one after the other."""

    current: Progress | None = None
    names: list[str] = field(default_factory=list)

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
    model: Model,
    data: ImageData,
    batched: BatchedSampler,
    seed: int = 0,
    split: str = "test",
    batch_size: int = 500,
) -> Evaluand:
    """A model with its data, its way of sampling and the moments of the training split."""
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
        progress=Shown(),
    )


def report(
    folder: Path,
    metrics: Mapping[str, Metric],
    evaluand: Evaluand,
    model: Model,
    batched: BatchedSampler,
    ckpt_path: Path,
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
    print_table(entries, f"{evaluand.data.name}: {evaluand.weights} weights of {ckpt_path.name}")
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}")
    picture = draw_samples(folder, evaluand, model, batched)
    print(f"metrics:     {folder / 'metrics.json'}")
    print(f"checkpoint:  {ckpt_path}")
    print(f"samples:     {picture}")
    events = sorted(folder.rglob("events.out.tfevents*"))
    if events:
        print(f"TensorBoard: {events[-1].parent}   (tensorboard --logdir {shlex.quote(str(events[-1].parent))})")
    for name, error in failed.items():  # after all that could be measured is written
        raise FlowdiffError(f"metrics.{name}: {error}") from error
    return entries


def report_rival(
    folder: Path, metrics: Mapping[str, Metric], evaluand: Evaluand, model: Model, ckpt_path: Path, rival: Rival
) -> dict[str, dict[str, Any]]:
    """`report` on the other model, into a folder in `folder` that has its name, and on both side by side."""
    theirs = replace(
        evaluand,
        denoiser=rival.model.denoiser,
        sample=SeededSampler(rival.batched),
        weights=rival.model.weights,
        progress=Shown(),
        planned=0,
        _samples=None,
        _drawn=None,
    )
    place = make_folder(folder / rival.name, "output_dir")
    entries = report(place, metrics, theirs, rival.model, rival.batched, rival.path)
    about = {
        name: f"{type(each.denoiser).__name__}, {each.weights} weights of {path}"
        for name, each, path in (("checkpoint", model, ckpt_path), (rival.name, rival.model, rival.path))
    }
    columns = {"checkpoint": folder, rival.name: place}
    files = compared(folder, f"{evaluand.data.name}, {evaluand.split} split, seed {evaluand.seed}", columns, about)
    print(f"comparison:  {', '.join(str(file) for file in files)}")
    return entries


def _refuse(value: Any) -> Any:
    raise TypeError(f"a metric's condition must be a plain value, not {type(value).__name__}")


def draw_samples(folder: Path, evaluand: Evaluand, model: Model, batched: BatchedSampler) -> Path:
    """samples.png: a row of ten images for each class (of large images as many as have 2^22 pixels), or points over
    log p.
    """
    path = folder / "samples.png"
    images = model.has_images
    count = max(4, min(100, (1 << 22) // math.prod(evaluand.data.image_shape[1:]))) if images else 1000
    x, labels = evaluand.samples(max(evaluand.planned, count))
    classes = labels if model.num_classes else None
    if not images:
        density = density_of(model, evaluand.sigma_min, classes) if model.normalized else None
        title = f"{model.data}: {batched.sampler.name}" + (
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


COLUMNS = ("split", "extractor", "sampler", "nfe", "seed", "weights")


def print_table(entries: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """A rich table: each value with its standard error, where one is known, and its conditions."""
    header = ["metric", "value", "± s.e.", "n", *("NFE" if column == "nfe" else column for column in COLUMNS)]
    rows = []
    for name, entry in entries.items():
        cells = [_cell(entry.get(column)) for column in COLUMNS]
        value, error = entry.get("value"), entry.get("standard_error")
        shown = "not finite" if value is None else f"{value:.4g}"
        rows.append([name, shown, "–" if error is None else f"{error:.2g}", f"{entry.get('n'):,}", *cells])
    tables.show(header, rows, title, right=("value", "± s.e.", "n", "NFE"))


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)
