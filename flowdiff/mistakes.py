"""What went wrong, in one line: the key, its value, and what is allowed. None for what is no user's mistake.

Hydra, Lightning and torch each have their way of saying it, over several lines and with a traceback; here
they are read and said again.
"""

import difflib
import errno
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flowdiff import text
from flowdiff.errors import ConfigError, FlowdiffError

DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
#: Groups whose values libraries check themselves, and where 2 may stand for "auto".
FREE = ("trainer", "logger", "hydra")
#: Choices that a plugin of Hydra's brings.
PLUGINS = ("joblib", "submitit_local", "submitit_slurm", "optuna")


def explain(error: BaseException, overrides: Sequence[str], config_dir: Path, config_name: str) -> str | None:
    """One line for the user, or None if the program itself is at fault."""
    chain = list(_causes(error))
    for cause in chain:
        if isinstance(cause, FlowdiffError):
            return one_line(cause)
    for cause in chain:
        line = _explain(cause, overrides, config_dir, config_name)
        if line:
            return line
    return None


def _explain(error: BaseException, overrides: Sequence[str], config_dir: Path, config_name: str) -> str | None:
    if isinstance(error, MissingConfigException):
        return _unknown_choice(error, overrides, config_dir)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not understood; write key=value, and quote what a shell reads"
    if isinstance(error, ConfigCompositionException):
        return _unknown_key(error, overrides, config_dir, config_name)
    if isinstance(error, InstantiationException):
        root = list(_causes(error))[-1]
        return f"{_target(error)}{one_line(root)}" if isinstance(root, TypeError | ValueError | ImportError) else None
    if isinstance(error, OmegaConfBaseException | HydraException):
        return one_line(error)
    if type(error).__name__ == "UncompletedJobError":  # submitit's; the job's log follows in it
        return " ".join(str(error).splitlines()[:2])
    if type(error).__name__ == "MisconfigurationException":  # Lightning's, which is not imported for this
        return f"trainer: {one_line(error)}"
    if isinstance(error, OSError) and error.errno in DISK:
        hint = "" if error.errno == errno.EACCES else "; free some space or set hydra.run.dir=…"
        return f"can't write {error.filename or 'to the disk'}: {error.strerror}{hint}"
    if type(error).__name__ == "OutOfMemoryError" or "not enough memory" in str(error):
        hint = "lower dataset.batch_size and raise trainer.accumulate_grad_batches by as much"
        return f"out of memory: {hint} ({one_line(error)[:120]})"
    return None


def _target(error: InstantiationException) -> str:
    """``flow: `` of an error with "full_key: flow"."""
    key = str(error).partition("full_key: ")[2].split("\n")[0].strip()
    return f"{key}: " if key else ""


def one_line(error: BaseException) -> str:
    """An exception's message without line breaks, and without what a terminal would obey."""
    return text.one_line(error) or type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, then what it was raised from."""
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        yield current
        current = current.__cause__ or current.__context__


def _unknown_choice(error: MissingConfigException, overrides: Sequence[str], config_dir: Path) -> str:
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    options = error.options or [file.stem for file in (config_dir / group).glob("*.yaml")]  # none for a list
    if not group or not options:
        return one_line(error)
    typed = next((o for o in overrides if o.split("=")[0].lstrip("+~") == group and choice in o), None)
    shown = f"{group}={choice}" if typed is None or "," in typed else typed
    if group.startswith("hydra/") and choice in PLUGINS:
        return f"{shown}: is not installed; pip install 'flowdiff[sweep]'"
    near = difflib.get_close_matches(choice, options, n=1)
    return f"{shown}: must be one of {', '.join(sorted(options))}" + (
        f"; did you mean {group}={near[0]}?" if near else ""
    )


def _unknown_key(
    error: ConfigCompositionException, overrides: Sequence[str], config_dir: Path, config_name: str
) -> str:
    parsed = parse(overrides)
    bad = next((o for o in parsed if f"'{o.key_or_group}'" in str(error).split("\n")[0]), None)
    if bad is None or bad.input_line is None or "Could not override" not in str(error):
        return one_line(error) + (f": {one_line(error.__cause__)}" if error.__cause__ else "")
    parent, _, name = bad.key_or_group.rpartition(".")
    try:
        others = [o.input_line for o in parsed if o is not bad and o.input_line and is_choice(o, config_dir)]
        cfg = composed(others, config_dir, config_name)
        while parent and not isinstance(OmegaConf.select(cfg, parent), DictConfig):
            parent, _, name = parent.rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else cfg
        keys = sorted(str(key) for key in node if not str(key).startswith("_"))
    except Exception:  # the other words are wrong as well: then the plain line
        return f"{bad.input_line}: unknown key"
    near = difflib.get_close_matches(name.replace("_", ""), [key.replace("_", "") for key in keys], n=1)
    meant = next((key for key in keys if near and key.replace("_", "") == near[0]), None)
    prefix = f"{parent}." if parent else ""
    listed = f"{parent or 'the configuration'} has {', '.join(keys)}"
    return f"{bad.input_line}: unknown key; {listed}" + (f"; did you mean {prefix}{meant}?" if meant else "")


def parse(overrides: Sequence[str]) -> list[Override]:
    """The words of a command line as Hydra reads them."""
    return OverridesParser.create().parse_overrides(list(overrides))


def is_choice(override: Override, config_dir: Path) -> bool:
    """Whether it chooses from a group (``flow=linear``) instead of setting a key."""
    return (config_dir / override.key_or_group).is_dir()


def composed(overrides: Sequence[str], config_dir: Path, config_name: str) -> DictConfig:
    """A configuration of its own, whatever Hydra is doing otherwise."""
    if GlobalHydra.instance().is_initialized():
        return compose(config_name, overrides=list(overrides))
    with initialize_config_dir(str(config_dir), version_base="1.3"):
        return compose(config_name, overrides=list(overrides))


def check_types(overrides: Sequence[str], config_dir: Path, config_name: str) -> None:
    """Refuse values of another type than the default's: ``flow.n_flows=many``, ``lr=fast``.

    Raises:
        ConfigError: naming the key.
    """
    words = parse(overrides)
    choices = [o.input_line for o in words if o.input_line and is_choice(o, config_dir)]
    values = [o for o in words if not is_choice(o, config_dir) and not o.is_delete() and not o.is_add()]
    values = [o for o in values if o.key_or_group.split(".")[0] not in FREE]
    if not values:
        return
    defaults = composed(choices, config_dir, config_name)
    for override in values:
        key, value = override.key_or_group, override.value()
        try:
            default = OmegaConf.select(defaults, key)
        except OmegaConfBaseException:  # an interpolation that only a run resolves
            continue
        allowed = _expected(default, value)
        if allowed:
            raise ConfigError(key, override.input_line.split("=", 1)[1] if override.input_line else value, allowed)


def _expected(default: Any, value: Any) -> str | None:
    """What should stand there, or None if the value will do."""
    if default is None or value is None or (isinstance(value, str) and "${" in value):
        return None
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "must be true or false"
    if isinstance(default, int | float):
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"must be a number, as {default:g}"
        if isinstance(default, int) and isinstance(value, float):
            return f"must be a whole number, as {default}"
        return None
    if OmegaConf.is_list(default) and not isinstance(value, list):
        return "must be a list in [ ]"
    if isinstance(default, str) and isinstance(value, list | dict):
        return "must be one word"
    return None
