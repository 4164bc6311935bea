"""The words of a command line that a checkpoint holds, taken as data.

Each word is read by Hydra's own grammar, and what it then means is held to be plain: a key is changed, added or
deleted, or one of the choices in conf/ is made. The rest can't come from a run of flowdiff's without a word of the
user's now, and is refused. What names something outside of the run (a path, a download, a service, several processes)
is told apart, for the caller to follow or to leave out.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import Override

from flowdiff import options
from flowdiff.commands.composition import is_choice
from flowdiff.errors import FlowdiffError, one_line
from flowdiff.model import configuration, safe_construction
from flowdiff.model.facts import LENGTH, is_text, values
from flowdiff.model.vocabulary import choice_of, has_choice, vocabulary
from flowdiff.runs.words import parse
from flowdiff.training.outside import TRAINER, USUAL

LETTERS = 32_768  # of all words together
NESTED = 8  # brackets in brackets
KEY = re.compile(r"[A-Za-z][A-Za-z0-9_]*([./][A-Za-z0-9][A-Za-z0-9_]*)*")
OPTIONAL = ("logger", "callbacks", "metrics", "debug")  # keys of the whole that a run can be without
MAPPINGS = ("callbacks", "logger", "metrics")  # groups of nodes by name
SERVICES = frozenset({"flowdiff.training.wandb_logger"})


def read(words: Sequence[str]) -> list[Override]:
    """The words as Hydra reads them.

    Raises:
        FlowdiffError: one of them is no plain change or choice.
    """
    if sum(map(len, words)) > LETTERS:
        raise FlowdiffError(f"its command line has more than {LETTERS:,} characters")
    return [_read(word) for word in words]


def _read(word: str) -> Override:
    if not is_text(word, LENGTH) or _depth(word) > NESTED:
        raise _refusal(word, "not a plain word")
    try:
        override = parse(word)
        value = None if override.is_delete() and override.value_type is None else override.value()
    except Exception as error:  # the grammar's, or of a function in it
        raise _refusal(word, "not understood") from error
    key = override.key_or_group
    if override.is_sweep_override() or override.package is not None:
        raise _refusal(word, "a sweep, or a package")
    if not KEY.fullmatch(key) or key.lower().startswith("hydra"):
        raise _refusal(word, "not a key of a run's configuration")
    if override.is_delete() and "." not in key and key not in OPTIONAL:
        raise _refusal(word, "a run can't be without it")
    if not _is_plain(value, 0):
        raise _refusal(word, "its value is more than a plain value")
    if is_choice(override) and not override.is_delete():
        chosen = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(choice, str) and has_choice(key, choice) for choice in chosen):
            raise _refusal(word, f"conf/{key} has no such choice")
    elif "/" in key:
        raise _refusal(word, "there is no such group")
    return override


def _refusal(word: str, why: str) -> FlowdiffError:
    return FlowdiffError(f"its command line holds the word {one_line(word, 120)}, which is not followed: {why}")


def _depth(word: str) -> int:
    depth = deepest = 0
    for c in word:
        depth += (c in "[{(") - (c in "]})")
        deepest = max(deepest, depth)
    return deepest


def _is_plain(value: Any, depth: int) -> bool:
    """Scalars, and lists and mappings of them, without anything that OmegaConf or Hydra would follow."""
    if isinstance(value, str):
        return "$" not in value and value != "???" and "_target_" not in value
    if isinstance(value, list):
        return depth < 4 and all(_is_plain(each, depth + 1) for each in value)
    if isinstance(value, dict):
        names = all(isinstance(key, str) and re.fullmatch("[A-Za-z][A-Za-z0-9_]*", key) for key in value)
        return depth < 4 and names and all(_is_plain(each, depth + 1) for each in value.values())
    return isinstance(value, bool | int | float | None)


# -- what is outside of the run ---------------------------------------------------------------------------


def is_outside(key: str, config: Mapping[str, Any]) -> bool:
    """Whether a key, as `dataset.root`, names something outside of the run: to be read, written, fetched or started.

    Args:
        key: its whole path.
        config: the composed configuration that it is part of.
    """
    group, _, rest = key.partition(".")
    if group in ("logger", "run_dir", "ckpt_path", "resume", "resume_sweep", "compile"):  # compile starts compilers
        return True
    if group == "trainer" and rest:
        return rest.split(".")[0] in TRAINER
    return any(
        path == key or path.startswith(f"{key}.") or key.startswith(f"{path}.") for path in _outside_in(group, config)
    )


def _outside_in(group: str, config: Mapping[str, Any]) -> Iterator[str]:
    for key, node in configuration.nodes(group, config.get(group)):
        try:
            accepted = options.options_of(safe_construction.find(group, key, node["_target_"]))
        except FlowdiffError:
            continue
        yield from (f"{key}.{name}" for name, annotation in accepted.items() if options.is_outside(annotation))


def goes_outside(override: Override, config: Mapping[str, Any]) -> bool:
    """Whether a stored word names something outside of the run, by its key or by its choice."""
    if override.is_delete():
        return False
    key, value = override.key_or_group, override.value()
    if not is_choice(override):
        return is_outside(key, config) or (key == "trainer" and isinstance(value, dict))
    chosen = value if isinstance(value, list) else [value]
    return any(_choice_goes_outside(key, str(choice)) for choice in chosen if choice is not None)


def _choice_goes_outside(group: str, choice: str) -> bool:
    content = choice_of(group, choice)
    if not isinstance(content, dict):
        return False
    if group == "trainer":
        return any(name in content and content[name] not in USUAL for name in TRAINER)
    return any(node["_target_"] in SERVICES for _, node in configuration.nodes("", content))


def check_composed(config: Mapping[str, Any]) -> None:
    """Hold what stored words have led to, unresolved, to what conf/ itself says.

    Raises:
        FlowdiffError: it holds an interpolation, a class or a key of Hydra's that conf/ has not there.
    """
    known = vocabulary()
    for group in MAPPINGS:
        content = config.get(group) or {}
        if not isinstance(content, Mapping) or not all(isinstance(each, Mapping | None) for each in content.values()):
            raise FlowdiffError(f"its command line leads to {group} that are no nodes")
    for group, content in config.items():
        if str(group).lower().startswith("hydra"):
            raise FlowdiffError(f"its command line leads to {group}, which is not followed")
        for _, value in values(content):
            if isinstance(value, str) and "${" in value and value not in known.interpolations:
                raise FlowdiffError(f"its command line leads to {group}: {value[:80]}, which is not followed")
        for key, node in configuration.nodes(str(group), content):
            if node["_target_"] not in known.targets.get(str(group), ()) or node["_target_"] in SERVICES:
                raise FlowdiffError(f"its command line leads to {key}._target_={str(node['_target_'])[:80]}")
