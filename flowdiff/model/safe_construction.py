"""Building what a stored configuration describes, whoever stored it.

A configuration is code: whoever builds it calls what its `_target_` names. So here nothing is built by Hydra. A node
may name the classes that conf/ names for its group (a sampler's node those in conf/sampler), with plain values of the
types and ranges that their signatures allow; no interpolation is followed, no key has a meaning but `_target_` and
`_partial_`; and what an argument marked as outside (`options.OUTSIDE`) would read, write or fetch is left
out, unless the caller knows that the user said it.
"""

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from flowdiff import options
from flowdiff.errors import FlowdiffError, one_line
from flowdiff.model import configuration
from flowdiff.model.facts import LINE, check_plain
from flowdiff.model.vocabulary import vocabulary

COUNT = 10_000_000  # of anything, in a stored configuration
PRIVATE = ("_target_", "_partial_")
#: What talks to the network or starts processes when it is built: never from a stored configuration.
NEVER = frozenset({"flowdiff.training.wandb_logger", "lightning.pytorch.Trainer"})


def find(group: str, key: str, target: Any) -> Callable[..., Any]:
    """What a stored `_target_` names.

    Args:
        group: of the configuration that the node is part of.
        key: where it stands.
        target: its value.

    Raises:
        FlowdiffError: conf/ doesn't name it for this group.
    """
    allowed = vocabulary().targets.get(group, frozenset()) - NEVER
    if not isinstance(target, str) or target not in allowed:
        shown = one_line(target if isinstance(target, str) else repr(target), 100)
        own = "a class of your own: give --config-dir, or config_dir to flowdiff.load"
        raise FlowdiffError(f"its configuration names {key}={shown}: only what conf/{group} names is built ({own})")
    module, _, name = target.rpartition(".")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise FlowdiffError(f"its configuration names {target}, which this version of flowdiff lacks") from error
    frozen = getattr(found, "frozen", None)  # it would read whatever path the configuration names
    if frozen:
        raise FlowdiffError(frozen)
    return found


def check(group: str, config: Any) -> None:
    """Raise unless a stored configuration of a group names only what it may, with arguments that are allowed there.

    Raises:
        FlowdiffError: says what isn't.
    """
    check_plain(f"its {group}", config)
    for key, node in configuration.nodes(group, config):
        accepted = options.options_of(find(group, f"{key}._target_", node["_target_"]))
        for name, value in node.items():
            if isinstance(value, int) and value > COUNT and name != "seed" and _counts(accepted.get(name)):
                why = f"more than {COUNT:,}, which is not followed where a file says it"
                raise FlowdiffError(f"{key}.{name}={value}: {why}")
    _check_values(group, config)
    configuration.check(group, config, functools.partial(find, group))


def _counts(annotation: Any) -> bool:
    """Whether an option takes whole numbers alone: how many, how large."""
    return options.problem(0.5, annotation) is not None


def _check_values(key: str, node: Any) -> None:
    if isinstance(node, Mapping):
        for name, value in node.items():
            if name.startswith("_") and name not in PRIVATE:
                raise FlowdiffError(f"its configuration has {key}.{name}, which is not followed")
            _check_values(f"{key}.{name}", value)
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            _check_values(f"{key}.{i}", value)
    elif isinstance(node, str) and ("${" in node or node == "???"):
        raise FlowdiffError(f"its configuration holds an interpolation, {key}={one_line(node, 100)}")


def find_outside(group: str, config: Any) -> dict[str, Any]:
    """What a configuration says of arguments that are read, written or fetched, by key; those that say nothing not."""
    found = {}
    for key, node in configuration.nodes(group, config):
        try:
            arguments = options.options_of(find(group, f"{key}._target_", node["_target_"]))
        except FlowdiffError:
            continue
        for name, value in node.items():
            if options.is_outside(arguments.get(name)) and value not in (None, False):
                found[f"{key}.{name}"] = value
    return found


def drop_outside(group: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A node without what `find_outside` finds in it itself."""
    found = find_outside(group, config)
    return {name: value for name, value in config.items() if f"{group}.{name}" not in found}


def build(group: str, config: Any, outside: bool = False, **arguments: Any) -> Any:
    """The object that a stored configuration describes.

    Args:
        group: of conf/, as `sampler`.
        config: plain values with a `_target_`.
        outside: follow what it says of paths, downloads and names on a hub: the user said it.
        arguments: further ones of the outermost class.

    Raises:
        FlowdiffError: it names what it may not, or a class refuses its arguments.
    """
    if not isinstance(config, Mapping) or "_target_" not in config:
        raise FlowdiffError(f"its configuration has no {group}")
    try:
        check(group, config)
        return _build(group, config, outside, arguments)
    except FlowdiffError as error:
        if len(str(error)) <= LINE:
            raise
        raise FlowdiffError(one_line(error, LINE)) from error  # what it quotes is the file's
    except Exception as error:
        raise FlowdiffError(f"{group}: {one_line(error, LINE)}") from error


def _build(group: str, node: Any, outside: bool, more: Mapping[str, Any]) -> Any:
    if isinstance(node, list | tuple):
        return [_build(group, value, outside, {}) for value in node]
    if not isinstance(node, Mapping):
        return node
    if "_target_" not in node:
        return {name: _build(group, value, outside, {}) for name, value in node.items()}
    target = find(group, f"{group}._target_", node["_target_"])
    accepted = options.options_of(target)
    given = {
        name: _build(group, value, outside, {})
        for name, value in node.items()
        if name not in PRIVATE and (outside or not options.is_outside(accepted.get(name)))
    }
    if node.get("_partial_", False):
        return functools.partial(target, **given, **more)
    return target(**given, **more)
