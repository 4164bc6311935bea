"""Building what a user's own configuration describes: any class may be named, where a stored one has
`model.safe_construction`.

A node is plain values with a `_target_`, the place of a class or function; its other keys are the arguments, in which
nodes are built first. `_partial_: true` leaves the call to whoever uses it, `_args_` are arguments by place,
`_recursive_: false` leaves the inner nodes as they are: what Hydra's `instantiate` does, without Hydra.
"""

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

from flowdiff.errors import ConfigError, FlowdiffError, at_least, one_line
from flowdiff.model import safe_construction
from flowdiff.model.configuration import RESERVED
from flowdiff.model.vocabulary import choice_of, files_of
from flowdiff.options import Product, Recipe
from flowdiff.samplers.batched import BatchedSampler

SETTINGS = ("num_steps", "sigma_min", "sigma_max", "sigma_start")
"""The sampling settings that a sampler's or a schedule's configuration may hold."""


def find_target(key: str, target: Any) -> Callable[..., Any]:
    """The class or function that a user's own `_target_` names.

    Raises:
        ConfigError: there is none.
    """
    module, _, name = target.rpartition(".") if isinstance(target, str) else ("", "", "")
    try:
        found = getattr(importlib.import_module(module), name) if module else None
    except (ImportError, AttributeError, ValueError):
        found = None
    if not callable(found):
        raise ConfigError(key, target, "must name a class, as flowdiff.flows.CouplingFlow")
    return found


def build(recipe: Recipe[Product], kind: type = object, **arguments: Any) -> Product:
    """What a recipe describes; an object as it is.

    Args:
        recipe: of a node or an object; or the object itself.
        kind: what has to come of it.
        arguments: further ones of the outermost class.

    Raises:
        FlowdiffError: with the recipe's key in front, it can't be built of its values, or is no `kind`.
    """
    key, content = (recipe.key, recipe.content) if isinstance(recipe, Recipe) else (kind.__name__, recipe)
    if isinstance(content, Mapping):
        built = _build(key, content, arguments)
        named = content.get("_target_")
    else:
        built = content(**arguments) if arguments else content
        named = type(content).__name__
    if not isinstance(built, kind):
        raise ConfigError(f"{key}._target_", named, f"must be a {kind.__name__}")
    return cast(Product, built)


def _build(key: str, node: Any, more: Mapping[str, Any]) -> Any:
    if isinstance(node, list | tuple):
        return [_build(f"{key}.{i}", value, {}) for i, value in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    if "_target_" not in node:
        return {name: _build(f"{key}.{name}", value, {}) for name, value in node.items()}
    target = find_target(f"{key}._target_", node["_target_"])
    inner = {name: value for name, value in node.items() if name not in RESERVED}
    if node.get("_recursive_", True):
        inner = {name: _build(f"{key}.{name}", value, {}) for name, value in inner.items()}
    given = functools.partial(target, *node.get("_args_", ()), **inner, **more)
    if node.get("_partial_", False):
        return given
    try:
        return given()
    except (TypeError, ValueError, ImportError) as error:
        raise FlowdiffError(f"{key}: {one_line(error)}") from error


def describe(product: Any) -> dict[str, Any]:
    """The node of an object whose class keeps its arguments under their own names, as those of this package do.

    Raises:
        FlowdiffError: it doesn't; a node can be given in its place.
    """
    if isinstance(product, functools.partial):
        return {**_arguments(product.func, product.keywords), "_partial_": True}
    if isinstance(product, type):
        return {"_target_": _place(product), "_partial_": True}
    names = [name for name, p in inspect.signature(type(product)).parameters.items() if p.kind is not p.VAR_KEYWORD]
    missing = [name for name in names if not hasattr(product, name)]
    if missing:
        hint = "give a node with a _target_ in its place"
        raise FlowdiffError(f"{type(product).__name__} doesn't keep its argument {missing[0]}: {hint}")
    return _arguments(type(product), {name: getattr(product, name) for name in names})


def _arguments(target: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    plain = (type(None), bool, int, float, str, list, tuple, dict)
    return {"_target_": _place(target)} | {k: v if isinstance(v, plain) else describe(v) for k, v in values.items()}


def _place(target: Any) -> str:
    return f"{target.__module__}.{target.__qualname__}"


def from_config(
    denoiser: Any,
    config: Mapping[str, Any],
    images: bool,
    batch_size: int = 256,
    tile: int | None = None,
    compile: bool = False,
    **settings: Any,
) -> BatchedSampler:
    """The sampler that a plain resolved configuration describes.

    Args:
        denoiser: what is sampled.
        config: holds `sampler` and `schedule` (each a `_target_` or an object) and `guidance_scale`.
        images: the data are images, so D is held to [-1, 1].
        batch_size, tile, compile: see `BatchedSampler`.
        settings: `num_steps`, `sigma_min`, `sigma_max`, `sigma_start`, `guidance_scale` in place of
            the configuration's; None keeps the configuration's.

    Raises:
        TypeError: another setting.
    """
    unknown = settings.keys() - {*SETTINGS, "guidance_scale"}
    if unknown:
        raise TypeError(f"unexpected keyword argument {min(unknown)}")
    given = {key: value for key, value in settings.items() if value is not None}
    if "num_steps" in given:
        at_least("num_steps", given["num_steps"], 1)
    return BatchedSampler(
        denoiser,
        sampler=_build_part("sampler", config["sampler"], given),
        schedule=_build_part("schedule", config["schedule"], given),
        guidance_scale=given.get("guidance_scale", config.get("guidance_scale", 1.0)),
        clip=(-1.0, 1.0) if images else None,
        batch_size=batch_size,
        tile=tile,
        compile=compile,
    )


def _build_part(key: str, config: Any, given: Mapping[str, Any]) -> Any:
    """The sampler or schedule of a configuration; one that is built already stays what it is."""
    if not isinstance(config, Mapping):
        return config
    wanted = {name: given.get(name, value) if name in SETTINGS else value for name, value in config.items()}
    return safe_construction.build(key, wanted)


def find_choice(group: str, choice: object, config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that a choice of a group stands for; what its file takes from the whole, as `${num_steps}`, is
    that of `config`.

    Raises:
        ConfigError: there is no such choice.
    """
    files = files_of(group)
    if str(choice) not in files:
        raise ConfigError(group, choice, f"must be one of {', '.join(files)}")
    content = choice_of(group, str(choice))
    if not isinstance(content, Mapping):
        raise ConfigError(group, choice, f"{files[str(choice)]} describes no {group}")
    return {
        name: config.get(value[2:-1]) if isinstance(value, str) and value.startswith("${") else value
        for name, value in content.items()
    }
