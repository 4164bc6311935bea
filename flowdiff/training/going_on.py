"""What a run that goes on from a checkpoint may still do, and where it is not the checkpoint's."""

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from flowdiff.errors import ConfigError, is_number, spell
from flowdiff.model.configuration import leaves
from flowdiff.model.requests import spell_out
from flowdiff.runs.interrupts import is_scheduled
from flowdiff.runs.words import is_typed
from flowdiff.training.request import TrainRequest


def check_left(content: Mapping[str, Any], request: TrainRequest, words: Sequence[str] = ()) -> None:
    """Refuse to go on from a checkpoint at the end of its budget: nothing would be trained.

    A run that was killed in its last measurement may go on in its own folder, and only measures; so does a job that
    its sweep or its scheduler has started again.

    Args:
        content: the checkpoint's.
        request: of the run that goes on from its `ckpt_path`.
        words: the command line; where it gives epochs alone, these are the budget.

    Raises:
        ConfigError: naming the part of the budget that is used up.
    """
    path, run = Path(str(request.ckpt_path)).resolve(), Path(request.run_dir).resolve()
    if path.parent.parent == run:
        measures = request.evaluate is not None and bool(request.metrics or request.autoencoder)
        if request.resume_sweep or is_scheduled() or (measures and not (run / "metrics.json").is_file()):
            return
    trainer = request.trainer
    steps = None if trainer.max_epochs and not is_typed("trainer.max_steps", words) else trainer.max_steps
    for key, unit, done, most in (
        ("max_steps", "steps", content.get("global_step"), steps),
        ("max_epochs", "epochs", _epochs(content), trainer.max_epochs),
        ("max_time", "seconds", _seconds_trained(content), _seconds(spell_out(trainer.max_time))),
    ):
        if is_number(done) and is_number(most) and 0 <= most <= done:  # type: ignore[operator]
            reason = f"{path} is at {done:.9g} of {most:.9g} {unit}: raise trainer.{key}"
            raise ConfigError(f"trainer.{key}", spell_out(getattr(trainer, key)), reason)


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
