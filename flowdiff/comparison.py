"""Another model measured beside a checkpoint: the same data, noise, levels and seeds, and the same sampler if it can.

python -m flowdiff.evaluate ckpt_path=… against=OTHER/checkpoints/best.ckpt
python -m flowdiff.evaluate ckpt_path=… denoiser=sdxl denoiser.path=FOLDER     ready-made, not from a checkpoint
"""

import copy
import csv
import inspect
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from flowdiff.api import Model
from flowdiff.checkpoint import Checkpoint
from flowdiff.checkpoint import load as load_checkpoint
from flowdiff.collect import Job, compare_by_rmse, read_job
from flowdiff.denoisers import Denoiser
from flowdiff.errors import ConfigError, FlowdiffError
from flowdiff.files import write_text
from flowdiff.generate import BatchedSampler
from flowdiff.samplers import Ancestral
from flowdiff.sampling import instantiate_choice, pick_device

STEPS = 64
"""Of the sampler that takes the place of one that the other model can't be sampled with, as in training."""


@dataclass
class Rival:
    """The other model.

    Attributes:
        name: of its column, and of the folder with its results.
        model, batched: it, and how it is sampled.
        path: where it comes from.
    """

    name: str
    model: Model
    batched: BatchedSampler
    path: Path


def opened_rival(cfg: DictConfig, batched: BatchedSampler) -> Rival | None:
    """The model that ``denoiser`` or ``against`` names; None where neither is given.

    Args:
        cfg: as in conf/evaluate.yaml.
        batched: how the checkpoint's model is sampled; the other one likewise, if it can be.

    Raises:
        ConfigError: it is no model for the checkpoint's data.
    """
    against, chosen = cfg.get("against"), cfg.get("denoiser")
    if against is None and chosen is None:
        return None
    if against is not None and chosen is not None:
        raise ConfigError("against", against, "is one model, denoiser= another: give one of them")
    ours = load_checkpoint(cfg.ckpt_path, cfg.weights)
    if against is None:
        denoiser = ready_made(chosen, ours)
        name, path = type(denoiser).__name__.lower(), Path(str(chosen.get("path")))
        theirs = replace(ours, denoiser=denoiser, weights="pretrained", path=path)
    else:
        try:
            name, theirs = "against", load_checkpoint(against, cfg.weights)
        except FlowdiffError as error:
            raise FlowdiffError(str(error).replace("ckpt_path=", "against=", 1)) from error
        if (theirs.data, theirs.shape) != (ours.data, ours.shape):
            was, own = (f"{each.data} of shape {each.shape}" for each in (theirs, ours))
            raise ConfigError("against", against, f"was trained on {was}, the checkpoint on {own}")
        if theirs.first_stage != ours.first_stage:
            raise ConfigError("against", against, "was trained on the latents of another autoencoder")
    model = Model(theirs, cfg.first_stage.path).to(pick_device(cfg.device))
    sampler = copy.deepcopy(batched.sampler)
    lacking = sampler.lacks(model.denoiser)
    if lacking is not None:
        sampler = Ancestral(num_steps=cfg.num_steps or STEPS)
        instead = f"sampling it with sampler=ancestral num_steps={sampler.num_steps}"
        print(f"{name} has no {lacking} for sampler={batched.sampler.name}: {instead}", flush=True)
    return Rival(name, model, replace(batched, denoiser=model.denoiser, sampler=sampler), theirs.path)


def ready_made(chosen: DictConfig, ours: Checkpoint) -> Denoiser:
    """A denoiser that needs no training, for the checkpoint's data."""
    plain: Any = OmegaConf.to_container(chosen, resolve=False)
    config: dict[str, Any] = dict(plain)
    target = str(config.get("_target_"))
    found = get_class(target)
    if not getattr(found, "frozen", None):
        choice = HydraConfig.get().runtime.choices.get("denoiser") if HydraConfig.initialized() else target
        allowed = "is made by training; give one's checkpoint as against=RUN/checkpoints/last.ckpt"
        raise ConfigError("denoiser", choice, f"{allowed} (ready-made is denoiser=sdxl)")
    for key in config.keys() - {"_target_", *inspect.signature(found).parameters}:
        raise ConfigError(f"denoiser.{key}", config[key], "unknown key")
    make = instantiate_choice("denoiser", {**config, "_partial_": True})
    return make(shape=ours.shape, num_classes=ours.num_classes, class_names=ours.class_names)


def compared(folder: Path, title: str, columns: Mapping[str, Path], about: Mapping[str, str]) -> list[Path]:
    """Print the results of several models side by side, and write them as comparison.csv and comparison.md.

    Denoising errors are those over the Wiener filter's, or RMSEs where that filter is told the class for one model only
    (`flowdiff.collect.compare_by_rmse`).

    Args:
        folder: takes the files.
        title: of the table.
        columns: the folder with metrics.json for the name of each model.
        about: a line on each model.

    Returns:
        The files.
    """
    jobs = {name: read_job(place) for name, place in columns.items()}
    compare_by_rmse(list(jobs.values()))
    metrics = list(dict.fromkeys(name for job in jobs.values() for name in job.metrics))
    header = ["metric", *jobs, "n", "sampler"]
    rows = [[name, *(_value(job, name) for job in jobs.values()), *_how(list(jobs.values()), name)] for name in metrics]
    table = Table(title=title, title_justify="left")
    for column in header:
        table.add_column(column, justify="left" if column in ("metric", "sampler") else "right")
    for row in rows:
        table.add_row(*row)
    console = Console()
    Console(width=console.width if console.is_terminal else max(console.width, 130)).print(table)
    files = [folder / "comparison.csv", folder / "comparison.md"]
    write_text(files[0], _csv(jobs, metrics))
    lines = [f"{title}\n", *(f"* {name}: {line}" for name, line in about.items()), ""]
    lines += ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
    write_text(files[1], "\n".join(lines) + "\n")
    return files


def _value(job: Job, metric: str) -> str:
    """As it is shown; a dash where it was not measured."""
    if metric not in job.metrics:
        return "–"
    value = job.metrics[metric]
    if value is None:
        return "not finite"
    return f"{value:,.0f}" if metric == "parameters" else f"{value:.4g}"


def _conditions(job: Job, metric: str) -> dict[str, Any]:
    """Of a metric, or of the ratio that it was measured with."""
    return job.conditions.get(metric) or job.conditions.get(metric.replace("_rmse/", "_ratio/")) or {}


def _how(jobs: Sequence[Job], metric: str) -> list[str]:
    """n and how it was sampled, once where it is the same for all."""
    numbers, samplers = [], []
    for job in jobs:
        found = _conditions(job, metric)
        numbers.append(f"{found['n']:,}" if "n" in found else "–")
        how = "{sampler}, {num_steps} steps, NFE {nfe:g}".format(**found) if "nfe" in found else "–"
        samplers.append(how)
    return [each[0] if len(set(each)) == 1 else " / ".join(each) for each in (numbers, samplers)]


def _csv(jobs: Mapping[str, Job], metrics: Sequence[str]) -> str:
    """A row for each metric: every model's value, then its standard error, n, sampler, num_steps and nfe."""
    keys = ("standard_error", "n", "sampler", "num_steps", "nfe")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["metric", *jobs, *(f"{name}/{key}" for name in jobs for key in keys)])
    for metric in metrics:
        values = [job.metrics.get(metric) for job in jobs.values()]
        how = [_conditions(job, metric).get(key) for job in jobs.values() for key in keys]
        writer.writerow([metric, *values, *how])
    return text.getvalue()
