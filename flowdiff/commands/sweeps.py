"""Going on with a sweep: the same command again, with `resume_sweep=true`.

The newest sweep that was started by the same words is found (or its folder given, `hydra.sweep.dir=…`). Of its jobs
those that `status.json` calls done are left as they are; one that was interrupted or killed, or that failed, goes on
from its last checkpoint, in its own folder; those that have none run from their beginning.
"""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from flowdiff.commands.composition import compose
from flowdiff.errors import ConfigError, FlowdiffError
from flowdiff.files import read_yaml
from flowdiff.runs import lock
from flowdiff.runs.interrupts import Interrupts
from flowdiff.runs.lock import OtherJob
from flowdiff.runs.sweeps import KEY, essential
from flowdiff.runs.words import assignment, read_word

held = contextlib.ExitStack()  # the lock of the sweep that this process runs, until the command ends


class Refused(BaseException):
    """Another process runs this sweep. No `Exception`, which Hydra would turn into a warning, and go on."""


class Record(Callback):
    """Notes the sweep's own words in its folder, as `multirun.yaml`, whatever sweeper runs it; Hydra's own does so
    itself, that of optuna doesn't. Before that the folder is this process's own, or the sweep doesn't begin."""

    folder: ClassVar[Path | None] = None  # of the sweep that this process runs

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            held.enter_context(lock.occupied(folder))
        except OtherJob as error:
            raise Refused(str(error)) from error
        Record.folder = folder
        OmegaConf.save(config, folder / "multirun.yaml")
        if in_workers(config.hydra):
            Interrupts.pass_on_to(workers)


def in_workers(hydra_cfg: Any) -> bool:
    """Whether the jobs run in processes that joblib has started."""
    return hydra_cfg.mode == RunMode.MULTIRUN and "joblib" in str(hydra_cfg.launcher.get("_target_")).lower()


def workers() -> list[int]:
    """The processes that joblib has started."""
    loky = sys.modules.get("joblib.externals.loky.reusable_executor")
    return list(getattr(getattr(loky, "_executor", None), "_processes", None) or {})


def wanted(words: Sequence[str]) -> bool:
    """Whether the command line asks for it."""
    return any(word.lower() == f"{KEY}=true" for word in words)


def started_by(words: Sequence[str], config_name: str, root: Path = Path("multirun")) -> Path | None:
    """The folder of the newest sweep below `root` with the same essential words; None if there is none."""
    single = [word for word in words if read_word(word).swept is None]
    name = str(compose(single, config_name).name)
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


def prepare(words: Sequence[str], arguments: list[str], config_name: str) -> None:
    """Point `arguments`, the command line, to the folder of the sweep that it goes on with, if it asks for one.

    Raises:
        ConfigError: there is no sweep to go on with, because it is no sweep.
    """
    if not wanted(words):
        return
    if not {"-m", "--multirun"} & set(arguments):
        raise ConfigError(KEY, "true", "is for --multirun; a single run goes on by ckpt_path=FILE or resume=last")
    if any(word.startswith("hydra.sweep.dir=") for word in words):
        return
    folder = started_by(words, config_name)
    print(f"going on with {folder}" if folder else "no earlier sweep of these words: a new one begins", flush=True)
    if folder:
        arguments.append(assignment("hydra.sweep.dir", folder))
