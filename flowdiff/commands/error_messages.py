"""What went wrong, in one line: the key, its value, and what is allowed. None for what is no user's mistake.

Hydra, Lightning and torch each have their way of saying it, over several lines and with a traceback; here
they are read and said again. What a key may hold is not known here but in `commands.requests` and the classes' own
signatures.
"""

import difflib
import errno
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

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

from flowdiff.commands.composition import compose, is_choice
from flowdiff.errors import ConfigError, FlowdiffError, how_to_install, one_line, spell, suggest
from flowdiff.model.configuration import leaves
from flowdiff.model.vocabulary import files_of
from flowdiff.runs.words import override, parse, read_word

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
UNFIT = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
#: Choices that a plugin of Hydra's brings.
PLUGINS = ("joblib", "submitit_local", "submitit_slurm", "optuna")
#: What other programs, and the guide that this project began from, call a key; the key here, or what to do instead.
ELSEWHERE = {
    "base_learning_rate": "did you mean lr={}?",
    "learning_rate": "did you mean lr={}?",
    "epochs": "did you mean trainer.max_epochs={}?",
    "use_conditioning": "did you mean conditioning=none (without the class) or conditioning=film?",
    "data_dim": "leave it out: the data say how many coordinates they have",
}


def explain(
    error: BaseException,
    overrides: Sequence[str],
    config_name: str,
    config: Mapping[str, Any] | None = None,
    composing: bool = False,
) -> str | None:
    """One line for the user, or None if the program itself is at fault.

    Args:
        error: what was raised.
        overrides: the words of the command line.
        config_name: what they were composed with.
        config: what came of it, plain values; an error of a class's own argument is said with its key in there.
        composing: the configuration was not composed yet, so that it is one of the words that is wrong.
    """
    chain = list(_causes(error))
    for cause in chain:
        if isinstance(cause, ConfigError) and config is not None:
            return f"{locate(config, cause.key, cause.value)}={spell(cause.value)}: {cause.allowed}"
        if isinstance(cause, FlowdiffError):
            return one_line(cause)
    for cause in chain:
        line = _explain(cause, overrides, config_name)
        if line:
            return line
    return _wrong_word(overrides, config_name) if composing else None


def locate(config: Mapping[str, Any], key: str, value: Any) -> str:
    """The shortest key in `config` that ends as `key` and holds `value`; `key` itself where there is none.

    A class says `n_flows`, or the key that it has as a rule, `flow.n_flows`; in flow=stack that is
    `flow.flows.pixels.n_flows`.
    """
    found = dict(leaves(config))
    if key in found and _same(found[key], value):
        return key
    end = key.rpartition(".")[2]
    places = [place for place in found if place.rpartition(".")[2] == end and _same(found[place], value)]
    return min(places, key=lambda place: place.count("."), default=key)


def _same(one: Any, other: Any) -> bool:
    as_list = lambda value: list(value) if isinstance(value, list | tuple) else value  # noqa: E731
    return type(as_list(one)) is type(as_list(other)) and bool(as_list(one) == as_list(other))


def _explain(error: BaseException, overrides: Sequence[str], config_name: str) -> str | None:
    if isinstance(error, MissingConfigException):
        return _unknown_choice(error, overrides)
    if isinstance(error, OverrideParseException):
        return _unreadable(str(error.override))
    if isinstance(error, ConfigCompositionException):
        return _unknown_key(error, overrides, config_name)
    if isinstance(error, InstantiationException):
        root = list(_causes(error))[-1]
        return f"{_target(error)}{one_line(root)}" if isinstance(root, TypeError | ValueError | ImportError) else None
    if isinstance(error, OmegaConfBaseException):
        key, said = getattr(error, "full_key", None), one_line(error).split(" full_key:")[0]
        return f"{key}: {said}" if key else said
    if isinstance(error, HydraException):
        return one_line(error)
    if type(error).__name__ == "UncompletedJobError":  # submitit's; the job's log follows in it
        return " ".join(str(error).splitlines()[:2])
    if type(error).__name__ == "MisconfigurationException":  # Lightning's, which is not imported for this
        return f"trainer: {one_line(error)}"
    if isinstance(error, OSError) and error.errno in FULL | UNFIT:
        hint = "; free some space or set hydra.run.dir=…" if error.errno in FULL else ""
        return f"can't write {error.filename or 'to the disk'}: {error.strerror}{hint}"
    if (
        type(error).__name__ == "OutOfMemoryError"
        or "allocate memory" in str(error)
        or "not enough memory" in str(error)
    ):
        hint = "lower dataset.batch_size and raise trainer.accumulate_grad_batches by as much"
        return f"out of memory: {hint} ({one_line(error, 120)})"
    return None


def _unreadable(word: str) -> str:
    """A word that Hydra's grammar has no reading for: nearly always a path."""
    key, equals, value = word.partition("=")
    if not equals:
        return f"{spell(word)}: not understood; write key=value"
    typed = override(key, value.strip("'\""))
    return f"{spell(word)}: not understood; quote the value for Hydra too: {typed}"


def _wrong_word(overrides: Sequence[str], config_name: str) -> str | None:
    """The first word with which the configuration can't be composed, choices before keys."""
    parsed = [parse(word) for word in overrides]
    ordered = sorted((o for o in parsed if o.input_line), key=lambda o: not is_choice(o))
    words = [str(o.input_line) for o in ordered]
    for count in range(1, len(words) + 1):
        try:
            compose(words[:count], config_name)
        except Exception as error:
            word, override = words[count - 1], ordered[count - 1]
            if is_choice(override):
                return f"{word}: must be one of {', '.join(files_of(override.key_or_group))}"
            return f"{word}: {one_line(error.__cause__ or error)}"
    return None


def _target(error: InstantiationException) -> str:
    """`flow: ` of an error with "full_key: flow"."""
    key = str(error).partition("full_key: ")[2].split("\n")[0].strip()
    return f"{key}: " if key else ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, then what it was raised from."""
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        yield current
        current = current.__cause__ or current.__context__


def _unknown_choice(error: MissingConfigException, overrides: Sequence[str]) -> str:
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    options = error.options or list(files_of(group))  # none for a list
    if not group or not options:
        return one_line(error)
    words = [o for o in overrides if read_word(o).key == group and choice in o]
    typed = next((o for o in words if _is_no_choice(parse(o))), None)
    word = f"{group}={choice}" if typed is None or "," in typed else typed
    if group.startswith("hydra/") and choice in PLUGINS:
        return f"{word}: is not installed; {how_to_install('sweep')}"
    return f"{word}: must be one of {', '.join(sorted(options))}{suggest(choice, options, f'{group}=')}"


def _is_no_choice(word: Override) -> bool:
    """Whether it chooses what there is none of: of several words for a group, the wrong one."""
    return is_choice(word) and str(word.value()) not in files_of(word.key_or_group)


def _unknown_key(error: ConfigCompositionException, overrides: Sequence[str], config_name: str) -> str:
    parsed = [parse(word) for word in overrides]
    several = next((o for o in parsed if o.is_sweep_override()), None)
    if several is not None and "multirun" in str(error):
        key, _, value = str(several.input_line).partition("=")
        typed = override(key, value)
        return f"{several.input_line}: several values want --multirun; one value with a comma in it is {typed}"
    named = [o for o in parsed if f"'{o.key_or_group}'" in str(error).split("\n")[0]]
    bad = next(filter(_is_no_choice, named), next(iter(named), None))
    if bad is None or bad.input_line is None or "Could not override" not in str(error):
        wrong = _wrong_word(overrides, config_name)
        return wrong or one_line(error) + (f": {one_line(error.__cause__)}" if error.__cause__ else "")
    parent, _, name = bad.key_or_group.rpartition(".")
    value = bad.input_line.partition("=")[2]
    if bad.key_or_group in ELSEWHERE:
        return f"{bad.input_line}: unknown key; {ELSEWHERE[name].format(value)}"
    if is_choice(bad):
        return f"{bad.input_line}: must be one of {', '.join(files_of(bad.key_or_group))}"
    if parent.split(".")[0] == "hydra":
        return f"{bad.input_line}: unknown key of Hydra's; --cfg hydra prints those that there are"
    try:
        others = [o.input_line for o in parsed if o is not bad and o.input_line and is_choice(o)]
        cfg = compose(others, config_name)
        while parent and not isinstance(OmegaConf.select(cfg, parent), DictConfig):
            parent, _, name = parent.rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else cfg
        keys = sorted(str(key) for key in node if not str(key).startswith("_"))
        everywhere = [key for key, _ in leaves(OmegaConf.to_container(cfg))]
    except Exception:  # the other words are wrong as well: then the plain line
        return f"{bad.input_line}: unknown key"
    end = bad.key_or_group.rpartition(".")[2]
    same = [key for key in everywhere if key.rpartition(".")[2] == end]
    if same:  # of this name in another group
        return f"{bad.input_line}: unknown key; did you mean {min(same, key=lambda key: key.count('.'))}={value}?"
    meant = _near(parent, name, keys)
    listed = f"{parent or 'the configuration'} has {', '.join(keys) or 'none'}"
    return f"{bad.input_line}: unknown key; {listed}" + (f"; did you mean {meant}={value}?" if meant else "")


def _near(parent: str, name: str, keys: Sequence[str]) -> str | None:
    """The key in this group that was probably meant."""
    near = difflib.get_close_matches(name.replace("_", ""), [each.replace("_", "") for each in keys], n=1)
    meant = next((each for each in keys if near and each.replace("_", "") == near[0]), None)
    return None if meant is None else f"{parent}.{meant}" if parent else meant
