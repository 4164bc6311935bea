"""What a run that goes on from a checkpoint may still do, and what it needs that the checkpoint doesn't hold."""

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from flowdiff.errors import ConfigError, FlowdiffError, is_number, spell
from flowdiff.model.configuration import leaves
from flowdiff.runs.interrupts import scheduled
from flowdiff.runs.words import is_typed


def check_left(content: Mapping[str, Any], config: Mapping[str, Any], words: Sequence[str] = ()) -> None:
    """Refuse to go on from a checkpoint at the end of its budget: nothing would be trained.

    A run that was killed in its last measurement may go on in its own folder, and only measures; so does a job that
    its sweep or its scheduler has started again.

    Args:
        content: the checkpoint's.
        config: of the run that goes on from `config["ckpt_path"]`, resolved.
        words: the command line; where it gives epochs alone, these are the budget.

    Raises:
        ConfigError: naming the part of the budget that is used up.
    """
    path, run = Path(config["ckpt_path"]).resolve(), Path(config["run_dir"]).resolve()
    if path.parent.parent == run:
        measures = bool(config.get("evaluate") and (config.get("metrics") or config.get("autoencoder")))
        if config.get("resume_sweep") or scheduled() or (measures and not (run / "metrics.json").is_file()):
            return
    trainer = config["trainer"]
    steps = None if trainer.get("max_epochs") and not is_typed("trainer.max_steps", words) else trainer.get("max_steps")
    done: Any
    most: Any
    for key, unit, done, most in (
        ("max_steps", "steps", content.get("global_step"), steps),
        ("max_epochs", "epochs", _epochs(content), trainer.get("max_epochs")),
        ("max_time", "seconds", _seconds_trained(content), _seconds(trainer.get("max_time"))),
    ):
        if is_number(done) and is_number(most) and 0 <= most <= done:
            reason = f"{path} is at {done:.9g} of {most:.9g} {unit}: raise trainer.{key}"
            raise ConfigError(f"trainer.{key}", trainer[key], reason)


def changes_of_model(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """What was asked for that makes another model of the checkpoint's, in words: `flow.n_flows=3 was 2`.

    Args:
        theirs, ours: configurations, of the checkpoint and of the run that goes on.
    """
    before, now = (dict(leaves(config.get("denoiser"))) for config in (theirs, ours))
    typed, said = dict(leaves(ours)), []
    for key, value in now.items():
        if before.get(key) == value or isinstance(value, Mapping):
            continue
        known = key if typed.get(key) == value else f"denoiser.{key}"  # denoiser.flow is flow, as it is typed
        if key.endswith("_target_"):
            new, old = (str(each).rpartition(".")[2] for each in (value, before.get(key)))
            said.append(f"{known.removesuffix('._target_')} is {new} and was {old}")
        else:
            said.append(f"{known}={spell(value)} was {spell(before.get(key))}")
    return f"{', '.join(said[:5]) or 'its weights are those of another one'}; leave it out, or begin a new run"


def config_dir() -> str | None:
    """The folder that `--config-dir` gave to Hydra's job, if there is one."""
    if not HydraConfig.initialized():
        return None
    sources = HydraConfig.get().runtime.config_sources
    return next((str(source.path) for source in sources if source.provider == "command-line"), None)


def check_config_dir(entry: Mapping[str, Any], path: str) -> None:
    """Refuse to go on without the configurations that a run was trained with.

    Args:
        entry: `"flowdiff"` of the checkpoint; `config_dir` in it is a word for the message and no more.
        path: the checkpoint's.

    Raises:
        FlowdiffError: it was trained with `--config-dir`, which is not given now.
    """
    theirs = entry.get("config_dir")
    if isinstance(theirs, str) and theirs and HydraConfig.initialized() and config_dir() is None:
        shown = "".join(character for character in theirs if character.isprintable())[:500]
        raise FlowdiffError(f"ckpt_path={path}: was trained with --config-dir={shown}: give it again")


def _epochs(content: Mapping[str, Any]) -> int | None:
    """The epochs behind a checkpoint, as Lightning counts them: that of a last batch is one, if still open."""
    try:
        loops = content["loops"]["fit_loop"]
        epoch, batch = loops["epoch_progress"]["current"], loops["epoch_loop.batch_progress"]
        return int(epoch["processed"]) + int(epoch["started"] > epoch["processed"] and batch["is_last_batch"])
    except (KeyError, TypeError, ValueError):
        return None


def _seconds_trained(content: Mapping[str, Any]) -> float | None:
    try:
        return next(
            float(state["time_elapsed"]["train"])
            for name, state in content["callbacks"].items()
            if str(name).startswith("Timer")
        )
    except (KeyError, TypeError, ValueError, StopIteration, AttributeError):
        return None


def _seconds(duration: Any) -> float | None:
    """Of `00:00:30:00` (days, hours, minutes, seconds) or `{minutes: 30}`; None where it is none of them."""
    try:
        if isinstance(duration, Mapping):
            return timedelta(**duration).total_seconds()
        found = re.fullmatch(r"(\d+):(\d\d):(\d\d):(\d\d)", str(duration).strip())
        names = ("days", "hours", "minutes", "seconds")
        return found and timedelta(**dict(zip(names, map(int, found.groups()), strict=True))).total_seconds()
    except (TypeError, ValueError, OverflowError):
        return None
