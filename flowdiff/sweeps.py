"""Going on with a sweep: the same command again, with ``resume_sweep=true``.

The newest sweep that was started by the same words is found (or its folder given, ``hydra.sweep.dir=…``). Of its jobs
those that ``status.json`` calls done are left as they are; one that was interrupted or killed, or that failed, goes on
from its last checkpoint, in its own folder; those that have none run from their beginning.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from flowdiff import cluster, mistakes
from flowdiff.collect import read_job
from flowdiff.errors import ConfigError, FlowdiffError
from flowdiff.paths import read_yaml

KEY = "resume_sweep"


class OtherJob(FlowdiffError):
    """A folder is in use by another job, or by another process: nothing may be written to it."""


class Record(Callback):
    """Notes the sweep's own words in its folder, as ``multirun.yaml``, whatever sweeper runs it; Hydra's own does so
    itself, that of optuna doesn't."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config, folder / "multirun.yaml")


def wanted(words: Sequence[str]) -> bool:
    """Whether the command line asks for it."""
    return any(word.lower() == f"{KEY}=true" for word in words)


def essential(words: Sequence[str]) -> list[str]:
    """The words that say what is swept, in an order of their own."""
    return sorted(word for word in words if not word.startswith((f"{KEY}=", "hydra.", "hydra/", "-")))


def started_by(words: Sequence[str], config_dir: Path, config_name: str, root: Path = Path("multirun")) -> Path | None:
    """The folder of the newest sweep below ``root`` with the same essential words; None if there is none."""
    single = [o.input_line for o in mistakes.parse(words) if not o.is_sweep_override() and o.input_line]
    name = str(mistakes.composed(single, config_dir, config_name).name)
    stored = sorted((root / name).glob("*/*/multirun.yaml"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in stored:
        theirs = _words_in(file)
        if theirs is not None and essential(theirs) == essential(words):
            return file.parent
    return None


def _words_in(file: Path) -> list[str] | None:
    """The sweep's own words in a multirun.yaml, which is data: its interpolations aren't followed."""
    try:
        content = read_yaml(file)
        return [str(word) for word in content["hydra"]["overrides"]["task"]]
    except (FlowdiffError, KeyError, TypeError):  # cut off
        return None


def prepare(words: Sequence[str], arguments: list[str], config_dir: Path, config_name: str) -> None:
    """Point ``arguments``, the command line, to the folder of the sweep that it goes on with, if it asks for one.

    Raises:
        ConfigError: there is no sweep to go on with, because it is no sweep.
    """
    if not wanted(words):
        return
    if not {"-m", "--multirun"} & set(arguments):
        raise ConfigError(KEY, "true", "is for --multirun; a single run goes on by ckpt_path=FILE or resume=last")
    if any(word.startswith("hydra.sweep.dir=") for word in words):
        return
    folder = started_by(words, config_dir, config_name)
    print(f"going on with {folder}" if folder else "no earlier sweep of these words: a new one begins", flush=True)
    if folder:
        arguments.append(f"hydra.sweep.dir='{folder}'")


def standing(folder: Path, overrides: Sequence[str]) -> tuple[str, Path | None]:
    """How far the job in a folder had come: its status, and its last checkpoint if it goes on from one.

    Raises:
        OtherJob: the folder belongs to another job, or its process still runs. A job that its scheduler has started
            again is the same job: where it says that it runs, it was killed.
    """
    if not (folder / "status.json").is_file():
        return "not started", None
    job = read_job(folder)
    if essential(job.words) != essential(overrides):
        raise OtherJob(f"{KEY}=true: {folder} holds another job ({' '.join(job.words)}); remove it, or sweep anew")
    if job.status == "running":
        if not cluster.requeued(folder):
            raise OtherJob(f"{KEY}=true: the job in {folder} is still running")
        job.status = "killed"
    last = folder / "checkpoints" / "last.ckpt"
    return job.status, last if job.status != "done" and last.is_file() else None
