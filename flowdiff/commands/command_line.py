"""The command line of a job, read from Hydra once and handed down as plain values (`runs.command_line`)."""

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from flowdiff.commands.composition import read_choices
from flowdiff.runs.command_line import CommandLine
from flowdiff.runs.words import assignment, list_swept

WITH_VALUE = ("--config-dir", "-cd", "--config-name", "-cn")
NOT_THEIRS = ("hydra.", "hydra/", "resume_sweep=", "ckpt_path=", "resume=", "run_dir=")


def read_command_line(
    words: Sequence[str] | None = None, source: dict[str, Any] | None = None, choices: Mapping[str, str] | None = None
) -> CommandLine:
    """That of Hydra's job; without one, what is given.

    Args:
        words: in place of those that were typed.
        source: the configuration before its interpolations are resolved.
        choices: those that `words` lead to.
    """
    if not HydraConfig.initialized():
        return CommandLine(words=tuple(words or ()), source=source, choices=choices or {})
    hydra = HydraConfig.get()
    in_sweep = hydra.mode == RunMode.MULTIRUN
    return CommandLine(
        words=tuple(typed_words() if words is None else words),
        source=source,
        choices=read_choices(hydra) if choices is None else choices,
        swept=swept_keys() if in_sweep else {},
        config_dir=given_config_dir(),
        launcher=str(hydra.launcher.get("_target_")).rpartition(".")[2] if in_sweep else None,
        as_single_run=as_single_run if in_sweep else lambda ckpt_path: contextlib.nullcontext(),
    )


def typed_words() -> list[str]:
    """The words of the command line that led to Hydra's job, an interpolation in them resolved if it can be."""
    if not HydraConfig.initialized():
        return []
    words = HydraConfig.get().overrides.task
    try:
        return [str(word) for word in words]
    except OmegaConfBaseException:
        return [str(word) for word in OmegaConf.to_container(words, resolve=False) or ()]


def swept_keys() -> dict[str, list[str]]:
    """The keys that this job's sweep varies and their values, as they are typed.

    They stand in the sweep's multirun.yaml (`commands.sweeps.Record`) and in an experiment's `hydra.sweeper.params`.
    No values: they can't be listed (an interval).
    """
    hydra = HydraConfig.get()
    words = [f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items()]
    file = Path(hydra.runtime.cwd, hydra.sweep.dir, "multirun.yaml")
    return list_swept([*words, *(OmegaConf.load(file).hydra.overrides.task if file.is_file() else [])])


def given_config_dir() -> str | None:
    """The folder that `--config-dir` gave to Hydra's job, if there is one."""
    if not HydraConfig.initialized():
        return None
    sources = HydraConfig.get().runtime.config_sources
    return next((str(source.path) for source in sources if source.provider == "command-line"), None)


@contextlib.contextmanager
def as_single_run(ckpt_path: str | None) -> Iterator[None]:
    """Within it, the command line of a sweep's job is that of a single run in the job's folder: what Lightning starts
    the run's other processes by.

    Args:
        ckpt_path: the checkpoint that it goes on from.
    """
    job, arguments = HydraConfig.get(), sys.argv
    run = HydraConfig.instance().cfg.hydra.run  # type: ignore[union-attr]
    options = []
    for option, value in zip(arguments[1:], [*arguments[2:], ""], strict=True):
        if option.startswith("-") and option not in ("-m", "--multirun"):
            options += [option, value] if option in WITH_VALUE else [option]
    words = [word for word in typed_words() if not word.lstrip("+").startswith(NOT_THEIRS)]
    words += [assignment("ckpt_path", ckpt_path)] if ckpt_path else []
    before = run.dir
    sys.argv = [arguments[0], *options, *words]
    with read_write(run):
        run.dir = str(Path(job.runtime.output_dir).absolute())
    try:
        yield
    finally:
        sys.argv = arguments
        with read_write(run):
            run.dir = before
