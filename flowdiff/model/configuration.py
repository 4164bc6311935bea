"""Configurations as plain values: walked, and held to the signatures of the classes that they name (`options`)."""

import dataclasses
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, get_args, get_origin

import yaml

from flowdiff.errors import ConfigError
from flowdiff.options import LATER, Recipe, options_of, problem

OTHERS = "others"  # the field of a dataclass that takes the keys which it doesn't list
RESERVED = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")
Find = Callable[[str, Any], Callable[..., Any]]
"""`find(key, target)` is what a `_target_` names, or raises a `ConfigError`."""


def check(key: str, value: Any, find: Find, annotation: Any = Any) -> None:
    """Refuse what a configuration's classes don't take, before any of them is built.

    Args:
        key: where `value` stands, as `flow`; "" for a whole configuration.
        value: plain values; every mapping in it with a `_target_` is held to the signature of what that names. An
            interpolation that stands there yet may become anything.
        find: see `Find`.
        annotation: of what stands there. A dataclass lists the keys of a mapping; a class, or a callable that returns
            one, is what a node has to build.

    Raises:
        ConfigError: with the whole key of the value that is wrong.
    """
    if isinstance(value, str) and "${" in value:
        return
    words = problem(value, annotation)
    if words is not None:
        raise ConfigError(key, value, words)
    if get_origin(annotation) is Annotated and LATER in get_args(annotation):
        return
    kind = member(annotation, value)
    if isinstance(value, Mapping):
        options: dict[str, Any] = {"**": _element(kind)}
        if "_target_" in value:
            options = _options_of_node(key, value, find, kind)
        if dataclasses.is_dataclass(kind):
            own = {name: hint for name, hint in options_of(typing.cast(Any, kind)).items() if name != OTHERS}
            options = {**options, **own} if "_target_" in value else own
            for name in own.keys() - value.keys():
                check(f"{key}.{name}" if key else name, None, find, own[name])
        for name in [*(each for each in options if each in value), *(each for each in value if each not in options)]:
            if name in RESERVED:
                continue
            where = f"{key}.{name}" if key else str(name)
            if name not in options and "**" not in options:
                known = ", ".join(sorted(str(each) for each in value if each in options)) or "none"
                raise ConfigError(where, value[name], f"unknown key; {key or 'the configuration'} has {known}")
            check(where, value[name], find, options.get(name, options.get("**", Any)))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            check(f"{key}.{i}", item, find, _element(kind))


def nodes(key: str, node: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping with a `_target_` inside `node`, the outer ones first, each with its key."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield key, dict(node)
        for name, value in node.items():
            yield from nodes(f"{key}.{name}" if key else str(name), value)
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from nodes(f"{key}.{i}", value)


def leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of nested mappings with its value, the outer ones first."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            where = f"{key}.{name}" if key else str(name)
            yield where, value
            yield from leaves(value, where)


def _options_of_node(key: str, node: Mapping[str, Any], find: Find, kind: Any) -> dict[str, Any]:
    """The options of what a node names, if it builds what is wanted there."""
    partial = node.get("_partial_", False)
    if not isinstance(partial, bool):
        raise ConfigError(f"{key}._partial_", partial, "must be true or false")
    target = find(f"{key}._target_", node["_target_"])
    wanted, made_later = kind, False
    if get_origin(kind) is Callable:
        wanted, made_later = get_args(kind)[1], True
    if isinstance(wanted, type) and wanted not in (Any, dict) and not dataclasses.is_dataclass(wanted):
        if isinstance(target, type) and not issubclass(target, wanted):
            raise ConfigError(f"{key}._target_", node["_target_"], f"must be a {wanted.__name__}")
        if partial != made_later:
            raise ConfigError(f"{key}._partial_", partial, f"must be {str(made_later).lower()} here")
    return options_of(target)


def to_yaml(config: Mapping[str, Any]) -> str:
    """A configuration as text."""
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)


def member(annotation: Any, value: Any) -> Any:
    """The part of an annotation that `value` fits: of a union one of its types, without `Annotated`'s notes."""
    if get_origin(annotation) in (Annotated, Recipe):
        return member(get_args(annotation)[0], value)
    if get_origin(annotation) in (typing.Union, types.UnionType):
        return next((member(each, value) for each in get_args(annotation) if problem(value, each) is None), Any)
    return annotation


def _element(annotation: Any) -> Any:
    """The annotation of what is in a list or a mapping; Any where it isn't known."""
    arguments = [each for each in get_args(annotation) if each is not Ellipsis]
    if get_origin(annotation) is Callable or not arguments:
        return Any
    return arguments[-1]
