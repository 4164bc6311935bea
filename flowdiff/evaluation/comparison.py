"""Another model measured beside a checkpoint: the same data, noise, levels and seeds, and the same sampler if it can.

python -m flowdiff.evaluate ckpt_path=… against=OTHER/checkpoints/best.ckpt
python -m flowdiff.evaluate ckpt_path=… denoiser=sdxl denoiser.path=FOLDER     ready-made, not from a checkpoint
"""

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from flowdiff.denoisers.base import Denoiser
from flowdiff.errors import ConfigError, FlowdiffError
from flowdiff.evaluation import tables
from flowdiff.evaluation.tables import Bold
from flowdiff.evaluation.text import to_markdown
from flowdiff.files import write_text
from flowdiff.model.api import Model
from flowdiff.model.checkpoint import Checkpoint
from flowdiff.model.checkpoint import load as load_checkpoint
from flowdiff.model.construction import make
from flowdiff.model.opening import pick_device
from flowdiff.runs.job_folders import Job, better, compare_by_rmse, read_job
from flowdiff.samplers.ancestral import Ancestral
from flowdiff.samplers.batched import BatchedSampler

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
    """The model that `denoiser` or `against` names; None where neither is given.

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
    build = make({**config, "_partial_": True}, "denoiser")
    return build(shape=ours.shape, num_classes=ours.num_classes, class_names=ours.class_names)


def compared(folder: Path, title: str, columns: Mapping[str, Path], about: Mapping[str, str]) -> list[Path]:
    """Print the results of several models side by side, and write them as comparison.csv and comparison.md.

    Denoising errors are those over the Wiener filter's, or RMSEs where that filter is told the class for one model only
    (`runs.job_folders.compare_by_rmse`). The last column is which way of a metric is better, as it says; in Markdown
    the best value is bold. That is no verdict: each model is one training.

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
    header = ["metric", *jobs, "n", "sampler", "better"]
    rows = [_row(list(jobs.values()), name) for name in metrics]
    tables.show(header, rows, title, right=(*jobs, "n"))
    files = [folder / "comparison.csv", folder / "comparison.md"]
    write_text(files[0], _csv(jobs, metrics))
    lines = [to_markdown(title), "", *(f"* {to_markdown(name)}: {to_markdown(line)}" for name, line in about.items())]
    write_text(files[1], "\n".join([*lines, "", tables.to_markdown(header, rows)]))
    return files


def _row(jobs: Sequence[Job], metric: str) -> list[str]:
    """Of a metric: each model's value, n and how it was sampled, which way is better."""
    direction, values = better(jobs, metric), [job.metrics.get(metric) for job in jobs]
    known, best = {value for value in values if value is not None}, None
    if direction is not None and len(known) > 1 and not any(job.is_reference(metric) for job in jobs):
        best = max(known) if direction == "higher" else min(known)
    cells = [_value(job, metric) for job in jobs]
    marked = [Bold(c) if v is not None and v == best else c for c, v in zip(cells, values, strict=True)]
    return [metric, *marked, *_how(jobs, metric), direction or "–"]


def _value(job: Job, metric: str) -> str:
    """As it is shown; a dash where it was not measured."""
    if metric not in job.metrics:
        return "–"
    value = job.metrics[metric]
    if value is None:
        return "not finite"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _how(jobs: Sequence[Job], metric: str) -> list[str]:
    """n and how it was sampled, once where it is the same for all."""
    numbers, samplers = [], []
    for job in jobs:
        found = job.conditions.get(metric, {})
        numbers.append(f"{found['n']:,}" if isinstance(found.get("n"), int) else "–")
        how = f"{found.get('sampler')}, {found.get('num_steps')} steps, NFE {tables.short(found.get('nfe'))}"
        samplers.append(how if "nfe" in found else "–")
    return [each[0] if len(set(each)) == 1 else " / ".join(each) for each in (numbers, samplers)]


def _csv(jobs: Mapping[str, Job], metrics: Sequence[str]) -> str:
    """A row for each metric: every model's value, then its standard error, n, sampler, num_steps and nfe."""
    keys = ("standard_error", "n", "sampler", "num_steps", "nfe")
    header = ["metric", *jobs, *(f"{name}/{key}" for name in jobs for key in keys)]
    rows = []
    for metric in metrics:
        values = [job.metrics.get(metric) for job in jobs.values()]
        how = [job.conditions.get(metric, {}).get(key) for job in jobs.values() for key in keys]
        rows.append([metric, *values, *how])
    return tables.to_csv(header, rows)
