"""Evaluation from the command line.   python -m flowdiff.evaluate ckpt_path=… metrics=[bits_per_dim,fd,denoising]

What needs torch is imported when a job begins, so that --help and tab completion answer at once.
"""

import glob
import os
import sys
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flowdiff.commands import cli
from flowdiff.errors import ConfigError
from flowdiff.runs.words import assignment


def run_of(ckpt_path: str | None) -> str:
    """The run folder of a checkpoint, `RUN` of RUN/checkpoints/last.ckpt; `outputs` where there is none
    or nothing may be written to it.
    """
    if not ckpt_path or not os.path.isfile(ckpt_path):
        return "outputs"
    folder = Path(ckpt_path).parent
    run = folder.parent if folder.name == "checkpoints" else folder
    return str(run) if not _leads_elsewhere(run) and os.access(run, os.W_OK) else "outputs"


def _leads_elsewhere(run: str | os.PathLike[str]) -> bool:
    """Whether RUN/evaluate, or a day's folder in it, is a link: the folder may be a stranger's."""
    results = Path(run, "evaluate")
    return any(os.path.islink(path) for path in (results, *results.glob("*"), *results.glob("*/*")))


OmegaConf.register_new_resolver("run_of", run_of, replace=True)


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Measure a checkpoint, print a table, write metrics.json: `evaluation.measurement.evaluate`."""
    from flowdiff.commands.configuration import make_request
    from flowdiff.evaluation import measurement
    from flowdiff.evaluation.request import EvaluateRequest

    return measurement.evaluate(make_request(EvaluateRequest, cfg, unresolved=["denoiser"]))


def checkpoints_of(pattern: str) -> list[str]:
    """The checkpoint of each run folder that a pattern names, best.ckpt or else last.ckpt.

    Raises:
        ConfigError: there is none.
    """
    found = []
    pattern_of_all = os.path.abspath(os.path.expanduser(pattern))  # a job that is collected elsewhere finds its run
    for folder in sorted(glob.glob(pattern_of_all), key=lambda path: (len(path), path)):
        files = (os.path.join(folder, "checkpoints", name) for name in ("best.ckpt", "last.ckpt"))
        found += [file for file in files if os.path.isfile(file)][:1]
    if not found:
        raise ConfigError("run", pattern, "no run folder with a checkpoint; give one, or a pattern as multirun/…/*")
    return found


def expand(arguments: list[str]) -> list[str]:
    """The command line with `run=PATTERN` written out as `ckpt_path=`, swept over where there are several."""
    patterns = [word.partition("=")[2] for word in arguments if word.startswith("run=")]
    if not patterns or patterns[-1] in ("", "null"):
        return arguments
    found = checkpoints_of(patterns[-1].strip("'\""))
    first, *others = (assignment("ckpt_path", path) for path in found)
    paths = ",".join([first, *(other.partition("=")[2] for other in others)])
    words = [*(word for word in arguments if not word.startswith("run=")), paths]
    if len(found) > 1:
        words += [] if {"-m", "--multirun"} & set(words) else ["--multirun"]
        if not any(word.startswith("output_dir=") for word in words):  # one folder for all, beside their runs
            common = os.path.commonpath([os.path.dirname(os.path.dirname(os.path.dirname(path))) for path in found])
            common = "outputs" if _leads_elsewhere(common) else common
            folder = os.path.join(common, time.strftime("evaluate/%Y-%m-%d/%H-%M-%S"))
            words.append(assignment("output_dir", folder))
    return words


def main() -> None:
    """The command line."""
    try:
        sys.argv[1:] = expand(sys.argv[1:])
    except ConfigError as error:
        sys.exit(str(error))
    cli.run(evaluate, "evaluate")
