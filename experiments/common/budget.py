"""A training of flowdiff that takes a given number of seconds, by the real command line.

    steps = seconds × steps per second of a short run of the same command

Both the rate and the seconds that the training then took are read from the run's own log: a row of csv/metrics.csv
says train/images_per_second over the log_every_n_steps steps before it, validation not counted. The learning rate
decays to 0 at the last step, because the number of steps is known before the first; what is measured is the best of
four validations, the last of which comes after the last step.
"""

import csv
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from flowdiff.errors import FlowdiffError
from flowdiff.model import api

CALIBRATION_STEPS = 220
CALIBRATION_SECONDS = 20.0  # a slow command makes fewer steps
CALIBRATION_WINDOW = 5  # steps between two rows of the log
WARM_UP = 4  # windows that are not timed
VALIDATIONS = 4
TOLERANCE = 0.1  # the share by which seconds may differ from the budget before it is said


def run_module(module: str, words: list[str], log: Path, limit: float) -> None:
    """Run `python -m module words` with all of its output in the file `log`.

    Raises:
        FlowdiffError: it failed or took longer than `limit` seconds. The message is its last line.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        try:
            done = subprocess.run(
                [sys.executable, "-m", module, *words], stdout=file, stderr=subprocess.STDOUT, timeout=limit
            )
        except subprocess.TimeoutExpired as error:
            raise FlowdiffError(f"stopped after {limit:.0f} s; its output is in {log}") from error
    if done.returncode:
        lines = log.read_text(errors="replace").strip().splitlines()
        raise FlowdiffError(lines[-1].strip() if lines else f"exit code {done.returncode}")


def train_for(seconds: float, words: list[str], seed: int, folder: Path, limit: float) -> dict[str, Any]:
    """Train and evaluate one model of flowdiff.

    Args:
        seconds: of training, evaluation not counted.
        words: of the command line, the same for calibration and training.
        seed: of the run.
        folder: takes the two run folders, calibration and run.
        limit: seconds of wall-clock for each of the two commands.

    Returns:
        `metrics` (the run's metrics.json), what was measured of the training and of sampling, and `run`.
    """
    rate, calibration = calibrate(words, seed, folder / "calibration", limit)
    steps = VALIDATIONS * max(1, round(seconds * rate / VALIDATIONS))  # the last one sees the last step
    run, start = folder / "run", time.monotonic()
    settings = [
        f"seed={seed}",
        f"warmup_steps={min(100, max(1, steps // 10))}",
        f"trainer.max_steps={steps}",
        f"trainer.val_check_interval={steps // VALIDATIONS}",
        f"trainer.log_every_n_steps={min(50, max(1, steps // 10))}",
        *("callbacks=minimal", "logger=csv", f"hydra.run.dir='{run}'"),
    ]
    run_module("flowdiff.train", [*settings, *words], folder / "run.log", limit)
    taken, logged = read_windows(run)
    spent = sum(taken) * steps / (len(taken) * logged)
    notes = [f"trained {spent:.0f} s: the machine's speed changed"] if abs(spent / seconds - 1) > TOLERANCE else []
    best = run / "checkpoints" / "best.ckpt"
    checkpoint = best if best.exists() else run / "checkpoints" / "last.ckpt"
    return {
        "metrics": json.loads((run / "metrics.json").read_text()),
        "seconds": spent,
        "wall_seconds": round(time.monotonic() - start, 1),
        "steps": steps,
        "images_per_second": batch_size(run) * len(taken) * logged / sum(taken),
        "calibration": calibration,
        **measure_sampling(checkpoint, notes),
        "note": "; ".join(notes) or None,
        "run": os.path.relpath(run),  # not where this machine has it
    }


def calibrate(words: list[str], seed: int, run: Path, limit: float) -> tuple[float, dict[str, Any]]:
    """Steps per second of the command, and how they were measured.

    Raises:
        FlowdiffError: it makes too few steps to be timed.
    """
    settings = [
        f"seed={seed}",
        f"trainer.max_steps={CALIBRATION_STEPS}",
        f"trainer.max_time=00:{time.strftime('%H:%M:%S', time.gmtime(CALIBRATION_SECONDS))}",
        f"trainer.log_every_n_steps={CALIBRATION_WINDOW}",
        "trainer.limit_val_batches=1",
        *("callbacks=minimal", "logger=csv", "evaluate=null", f"hydra.run.dir='{run}'"),
    ]
    run_module("flowdiff.train", [*settings, *words], run.with_suffix(".log"), limit)
    taken, logged = read_windows(run)
    timed = taken[WARM_UP:] or taken[1:]
    if not timed:
        raise FlowdiffError(f"fewer than {2 * CALIBRATION_WINDOW} steps in {CALIBRATION_SECONDS:.0f} s: too slow")
    rate = len(timed) * logged / sum(timed)
    return rate, {"steps": len(timed) * logged, "seconds": sum(timed), "steps_per_second": rate}


def read_windows(run: Path) -> tuple[list[float], int]:
    """The seconds between the rows of a run's log, and how many steps lie between two rows."""
    config = OmegaConf.load(run / "config.yaml")
    steps, images = int(config.trainer.log_every_n_steps), batch_size(run)
    file = run / "csv" / "metrics.csv"
    rows = list(csv.DictReader(file.open(newline=""))) if file.is_file() else []
    speeds = [float(row["train/images_per_second"]) for row in rows if row.get("train/images_per_second")]
    return [steps * images / speed for speed in speeds], steps


def batch_size(run: Path) -> int:
    """Images in a step of the run."""
    return int(OmegaConf.load(run / "config.yaml").dataset.batch_size)


def measure_sampling(checkpoint: Path, notes: list[str]) -> dict[str, Any]:
    """Parameters of the model and seconds for 100 samples: by its own sampler, and by one inversion if it can.

    An inversion that breaks down is a note.
    """
    model = api.load(checkpoint)
    times: dict[str, Any] = {
        "given_class": model.num_classes > 0,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds_per_100": seconds_per_100(model),
    }
    if model.has_inverse:
        try:
            times["inversion_seconds_per_100"] = seconds_per_100(model, sampler="inversion")
        except FlowdiffError as error:
            notes.append(f"no inversion: {error}")
    return times


def seconds_per_100(model: api.Model, **sampling: Any) -> float:
    """Seconds for 100 samples; the least of three times where that is quick."""
    best, tries = math.inf, 0
    while tries < 3 and (tries == 0 or best < 2):
        start = time.perf_counter()
        model.sample(100, quiet=True, **sampling)
        best, tries = min(best, time.perf_counter() - start), tries + 1
    return best
