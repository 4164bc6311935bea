"""What is asked of a stored model: each key of a command, its type, its range and what it means.

A request is a dataclass. A composed configuration is held to its annotations (`check`) and becomes one (`fill`): one
place for a key, from which the errors are made. Defaults for the command line stand in conf/, where a user
reads them; what belongs to a class (`flow.n_flows`) stands in that class's signature.
"""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from flowdiff.errors import ConfigError
from flowdiff.model import configuration
from flowdiff.model.configuration import OTHERS
from flowdiff.model.construction import describe, find_target
from flowdiff.model.facts import Weights
from flowdiff.options import LATER, Guidance, Length, Pattern, Range, Recipe, Seed, Sigma, Steps

Request = TypeVar("Request")
Checkpoint = Annotated[str, Pattern(r"(?s).+", "a checkpoint, as RUN/checkpoints/last.ckpt")]
Device = Annotated[str, Pattern(r"auto|cpu|mps|cuda(:\d+)?", "one of auto, cpu, cuda, cuda:<number>, mps")]
Partly = Annotated[Mapping[str, Any] | None, LATER]
"""A choice of a group, or some of its keys, over what the checkpoint has."""


@dataclass
class FirstStagePlace:
    """Where a model's autoencoder is; None: where it was in training."""

    path: str | None = None


@dataclass
class CheckpointRequest:
    """What every command on a checkpoint takes.

    Attributes:
        ckpt_path: a checkpoint, an exported model, or the name of a ready one (`model.ready`).
        output_dir: the folder of the results.
    """

    ckpt_path: Checkpoint
    output_dir: str
    weights: Weights = "ema"
    first_stage: FirstStagePlace = dataclasses.field(default_factory=FirstStagePlace)


@dataclass
class DrawRequest(CheckpointRequest):
    """What every command takes that draws samples; None is the checkpoint's own.

    Attributes:
        data_root: where the data are now; None: in FLOWDIFF_DATA, or where they were in training.
        compile: by torch.compile the network that is sampled, and the log-densities of an evaluation.
    """

    data_root: str | None = None
    guidance_scale: Guidance | None = None
    seed: Seed = 0
    num_steps: Steps | None = None
    sigma_min: Sigma | None = None
    sigma_max: Sigma | None = None
    sigma_start: Sigma | None = None
    device: Device = "auto"
    batch_size: Annotated[int, Range(1, 1_000_000)] = 256
    tile: Annotated[int, Range(1, 65_536)] | None = None
    compile: bool = False
    sampler: Partly = None
    schedule: Partly = None


@dataclass
class ExportRequest(CheckpointRequest):
    """conf/export.yaml.

    Attributes:
        half: store weights in float16 and read them back as float32; of safetensors.
    """

    format: Literal["safetensors", "diffusers"] = "safetensors"
    half: bool = False


One = int | float | bool | str
ClassLabel = One | Annotated[list[One], Length(1, 1_000_000)] | None


def check(kind: type[Any], config: Mapping[str, Any]) -> None:
    """Refuse a configuration in which a key has a wrong type or value, by name, before anything is built.

    Args:
        kind: of request.
        config: plain values, resolved or not.

    Raises:
        ConfigError: naming the key, the value and what is allowed.
    """
    configuration.check("", config, find_target, kind)
    check_levels(config)


def check_levels(config: Mapping[str, Any]) -> None:
    """Refuse noise levels of sampling that don't stand in their order; None is not known yet."""
    low, high = (_level(config, key) for key in ("sigma_min", "sigma_max"))
    if low is not None and high is not None and low >= high:
        raise ConfigError("sigma_min", low, f"must be smaller than sigma_max={high:g}")
    for key in ("sigma_start", "sampler.sigma_start", "task.sigma_start"):
        start = _level(config, key)
        if start is not None and high is not None and start > high:
            raise ConfigError(key, start, f"must be at most sigma_max={high:g}")
        if start is not None and low is not None and start < low:
            raise ConfigError(key, start, f"must be at least sigma_min={low:g}")


def _level(config: Mapping[str, Any], key: str) -> float | None:
    """A noise level of a configuration; None where there is none, or an interpolation yet."""
    group, _, name = key.rpartition(".")
    node = config.get(group) if group else config
    found = node.get(name) if isinstance(node, Mapping) else None
    return found if isinstance(found, int | float) else None


def fill(kind: type[Request], config: Mapping[str, Any], key: str = "") -> Request:
    """The request that plain resolved values make, which `check` has passed."""
    hints = typing.get_type_hints(kind, include_extras=True)
    values = {
        name: _value(f"{key}.{name}" if key else name, config[name], hint)
        for name, hint in hints.items()
        if name in config and name != OTHERS
    }
    if OTHERS in hints:
        values[OTHERS] = {name: value for name, value in config.items() if name not in hints}
    return kind(**values)


def _value(key: str, value: Any, annotation: Any) -> Any:
    if value is None or (get_origin(annotation) is Annotated and LATER in get_args(annotation)):
        return value
    if any(get_origin(each) is Recipe for each in (annotation, *get_args(annotation))):
        return Recipe(key, value)
    kind = configuration.member(annotation, value)
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return fill(typing.cast(Any, kind), value, key)
    if isinstance(value, Mapping) and get_args(kind):
        return {name: _value(f"{key}.{name}", each, get_args(kind)[-1]) for name, each in value.items()}
    return value


def spell_out(value: Any) -> Any:
    """A request as plain values again, which a checkpoint holds; objects as the nodes that make them.

    A field that is None by itself is left out.
    """
    if isinstance(value, Recipe):
        return spell_out(value.content)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        given = {field: getattr(value, field.name) for field in dataclasses.fields(value)}
        fields = {f.name: each for f, each in given.items() if not (each is None and f.default is None)}
        others = fields.pop(OTHERS, {})
        return {name: spell_out(each) for name, each in {**fields, **others}.items()}
    if isinstance(value, Mapping):
        return {name: spell_out(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [spell_out(each) for each in value]
    return value if value is None or isinstance(value, bool | int | float | str) else describe(value)
