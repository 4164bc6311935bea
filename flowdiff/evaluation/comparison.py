"""Another model measured beside a checkpoint: the same data, noise, levels and seeds, and the same sampler if it can.

python -m flowdiff.evaluate ckpt_path=… against=OTHER/checkpoints/best.ckpt
python -m flowdiff.evaluate ckpt_path=… denoiser=sdxl denoiser.path=FOLDER     ready-made, not from a checkpoint
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from flowdiff.denoisers.base import Denoiser
from flowdiff.errors import ConfigError, FlowdiffError
from flowdiff.evaluation import tables
from flowdiff.evaluation.request import EvaluateRequest
from flowdiff.evaluation.tables import Bold
from flowdiff.evaluation.text import to_markdown
from flowdiff.files import write_text
from flowdiff.model import checkpoint
from flowdiff.model.api import Model
from flowdiff.model.checkpoint import Facts
from flowdiff.model.construction import build, find_target
from flowdiff.model.opening import pick_device
from flowdiff.options import Recipe
from flowdiff.runs.job_folders import Job, better, compare_by_rmse
from flowdiff.samplers.ancestral import Ancestral
from flowdiff.samplers.base import Sampler
from flowdiff.samplers.batched import BatchedSampler

STEPS = 64
"""Of the sampler that takes the place of one that the other model can't be sampled with, as in training."""


@dataclass
class Contender:
    """A model that is measured.

    Attributes:
        name: of its column, and of the other one's folder.
        model, batched: it, and how it is sampled.
        path: where it comes from.
    """

    name: str
    model: Model
    batched: BatchedSampler
    path: Path

    def describe(self) -> str:
        """What it is, in words: `ScoreFlow, ema weights of RUN/checkpoints/best.ckpt`."""
        return f"{type(self.model.denoiser).__name__}, {self.model.weights} weights of {self.path}"


def open_rival(request: EvaluateRequest, ours: Contender) -> Contender | None:
    """The model that `denoiser` or `against` names; None where neither is given.

    Args:
        request: of the evaluation.
        ours: the checkpoint's model; the other one is sampled as it is, if it can be.

    Raises:
        ConfigError: it is no model for the checkpoint's data.
    """
    against, chosen, facts = request.against, request.denoiser, ours.model.facts
    if against is None and chosen is None:
        return None
    if against is not None and chosen is not None:
        raise ConfigError("against", against, "is one model, denoiser= another: give one of them")
    if chosen is not None:
        denoiser: Any = build_ready_made(chosen, facts)
        name, path = type(denoiser).__name__.lower(), Path(str(chosen.get("path")))
        facts = replace(facts, weights="pretrained", path=path)
    else:
        assert against is not None
        name, path = "against", Path(against)
        denoiser, facts = load_rival(against, request.weights, facts)
    model = Model(denoiser, facts, request.first_stage.path).to(pick_device(request.device))
    sampler: Sampler = ours.batched.sampler
    lacking = sampler.lacks(model.denoiser)
    if lacking is not None:
        sampler = Ancestral(num_steps=request.num_steps or STEPS)
        instead = f"sampling it with sampler=ancestral num_steps={sampler.num_steps}"
        print(f"{name} has no {lacking} for sampler={ours.batched.sampler.name}: {instead}", flush=True)
    return Contender(name, model, replace(ours.batched, denoiser=model.denoiser, sampler=sampler), path)


def load_rival(against: str, weights: str, ours: Facts) -> tuple[nn.Module, Facts]:
    """The model of another checkpoint, of the same data."""
    try:
        denoiser, theirs = checkpoint.load(against, weights)
    except FlowdiffError as error:
        raise FlowdiffError(str(error).replace("ckpt_path=", "against=", 1)) from error
    if (theirs.data, theirs.shape) != (ours.data, ours.shape):
        was, own = (f"{each.data} of shape {each.shape}" for each in (theirs, ours))
        raise ConfigError("against", against, f"was trained on {was}, the checkpoint on {own}")
    if theirs.first_stage != ours.first_stage:
        raise ConfigError("against", against, "was trained on the latents of another autoencoder")
    return denoiser, theirs


def build_ready_made(node: Mapping[str, Any], ours: Facts) -> Denoiser:
    """A denoiser that needs no training, for the checkpoint's data."""
    found = find_target("denoiser._target_", node.get("_target_"))
    if not getattr(found, "frozen", None):
        allowed = "is made by training; give one's checkpoint as against=RUN/checkpoints/last.ckpt"
        raise ConfigError(
            "denoiser._target_",
            node.get("_target_"),
            f"{allowed} (ready-made are denoiser=sdxl, unet_diffusers_pretrained)",
        )
    taken = inspect.signature(found).parameters
    for key in node.keys() - {"_target_", *taken}:
        raise ConfigError(f"denoiser.{key}", node[key], "unknown key")
    facts = {"shape": ours.shape, "num_classes": ours.num_classes, "class_names": ours.class_names}
    arguments = {name: value for name, value in facts.items() if name in taken}
    return build(Recipe[Denoiser]("denoiser", node), Denoiser, **arguments)


def compare(folder: Path, title: str, columns: Mapping[str, Mapping[str, Any]], about: Mapping[str, str]) -> list[Path]:
    """Print the results of several models side by side, and write them as comparison.csv and comparison.md.

    Denoising errors are those over the Wiener filter's, or RMSEs where that filter is told the class for one model only
    (`runs.job_folders.compare_by_rmse`). The last column is which way of a metric is better, as it says; in Markdown
    the best value is bold. That is no verdict: each model is one training.

    Args:
        folder: takes the files.
        title: of the table.
        columns: what is in metrics.json of each model, by its name.
        about: a line on each model.

    Returns:
        The files.
    """
    jobs = {name: Job(folder) for name in columns}
    for name, entries in columns.items():
        jobs[name].take(entries)
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
