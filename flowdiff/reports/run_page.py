"""One run's page, index.html: what was measured and how, the curves, pictures, configuration, and how to go on."""

import shlex
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import torch

from flowdiff.errors import FlowdiffError, one_line
from flowdiff.evaluation import tables
from flowdiff.files import Unreadable, write_text
from flowdiff.quantities import Quantity
from flowdiff.reports import figures, samples
from flowdiff.reports.page import Section, page
from flowdiff.reports.summary import Table
from flowdiff.runs.job_folders import Job, read_job
from flowdiff.runs.run_files import read

MARKS = ("status.json", "metrics.json", "config.yaml", ".hydra/overrides.yaml")
CURVES = ("loss", "bits_per_dim", "nll", "denoising")
SIGMAS = (0.1, 0.3, 1.0, 3.0, 10.0)
SHOWN = 10  # validation images
HEADER = ("metric", "value", "±", "better", "n", "split", "sampler", "evaluations", "weights", "seed")
MOST_CONFIG = 2**18


def read_run(folder: Path) -> Job:
    """The run of a folder.

    Raises:
        FlowdiffError: there is none.
    """
    if not any((folder / mark).is_file() for mark in MARKS):
        raise FlowdiffError(f"{folder}: no run's folder; give one that holds {' or '.join(MARKS[:2])}")
    return read_job(folder)


def write(job: Job, n_samples: int, folder: Path) -> Path:
    """The page of a run, into `folder`.

    Args:
        job: the run.
        n_samples: images drawn from its checkpoint.
        folder: takes index.html and the pictures that it holds.
    """
    run = job.folder
    now = datetime.now().astimezone().isoformat(" ", "seconds")
    made = f"Made {now} from {one_line(run.resolve())}"
    title = one_line(f"Run {run.resolve().parent.name}/{run.resolve().name}", 300)
    file = folder / "index.html"
    write_text(file, page(title, made, list(sections(job, n_samples, folder))))
    return file


def sections(job: Job, n_samples: int, folder: Path) -> Iterator[Section]:
    """What the page says, with the pictures drawn into `folder`; what a run doesn't have is left out."""
    seconds = "" if job.seconds is None else f", {job.seconds:,.0f} seconds"
    error = f": {job.error}" if job.error else ""
    known = job.status != "not started"  # a run from Python writes no status.json
    yield Section("Run", [f"{job.status}{seconds}{error}"] if known else [], text="\n".join(commands(job)))
    if job.metrics:
        yield Section("Measured", tables=[measured(job)])
    curves = figures.curves_of(job.folder, CURVES, folder / "curves.png")
    if curves is not None:
        yield Section("Training", pictures=[("Of training steps and of validations, by the step.", curves)])
    drawn = samples.grid(job, n_samples, folder / "samples.png")
    if drawn is not None:
        yield Section("Samples", pictures=[("Of the checkpoint, the classes in turn.", drawn)])
    denoised = denoising(job, folder / "denoising.png")
    if denoised is not None:
        levels = ", ".join(f"{sigma:g}" for sigma in SIGMAS)
        yield Section(
            "Denoising", pictures=[(f"A row a validation image: x0, then x0 + σε and D, σ = {levels}.", denoised)]
        )
    try:
        configuration = read(job.folder, "config.yaml", MOST_CONFIG)
    except Unreadable as problem:
        configuration = str(problem)
    if configuration:
        yield Section("Configuration", text=configuration)


def commands(job: Job) -> Iterator[str]:
    """What the run was started by, and what can be done with its checkpoints."""
    module = "flowdiff.train" if job.trained is None else "flowdiff.evaluate"
    if job.words:
        yield f"python -m {module} {shlex.join(job.words)}"
    for name, module, more in (
        ("best.ckpt", "sample", ""),
        ("best.ckpt", "evaluate", ""),
        ("last.ckpt", "train", " trainer.max_steps=STEPS   # goes on"),
    ):
        if (job.folder / "checkpoints" / name).is_file():
            yield f"python -m flowdiff.{module} {shlex.quote(f'ckpt_path={job.folder}/checkpoints/{name}')}{more}"


def measured(job: Job) -> Table:
    """A row for each metric, with its conditions; a dash for one that it doesn't have."""
    rows = []
    for name, value in job.metrics.items():
        found, quantity = job.conditions[name], job.quantities.get(name, Quantity(name))
        error = found.get("standard_error")
        conditions = (found.get(key) for key in ("n", "split", "sampler", "nfe", "weights", "seed"))
        shown = "not finite" if value is None else tables.short(value)
        beside = f"{error:.2g}" if isinstance(error, float) else None
        cells = (name, shown, beside, quantity.better, *conditions)
        rows.append(["–" if cell is None else tables.short(cell) for cell in cells])
    return list(HEADER), rows


def denoising(job: Job, path: Path) -> Path | None:
    """Validation images, noised and denoised at several σ. None: there is no checkpoint, or its data aren't here."""
    checkpoint = samples.find_checkpoint(job)
    if checkpoint is None:
        return None
    from flowdiff.evaluation import pictures
    from flowdiff.model import api, opening

    try:
        model = api.load(checkpoint)
        if not model.has_images:
            return None
        data = opening.load_data(model)
        k, labels = data.encoded("val")
    except FlowdiffError as error:
        print(one_line(f"no denoised images of {job.folder}: {error}"), flush=True)
        return None
    x0, own = data.to_centres(k[:SHOWN]), labels[:SHOWN] if model.num_classes else None
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    strip = pictures.denoising_strip(model.denoiser.denoise, x0, own, SIGMAS, noise, data.to_uint8)
    pictures.save_png(strip, path)
    return path
