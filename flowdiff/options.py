"""What may be given for an argument: its type, its range, and whether a stranger's file may say it.

It stands beside the argument, in the signature that everybody reads, and nowhere else:

    def __init__(self, n_flows: Annotated[int, Range(1, 1000)] = 8, path: Annotated[str | None, OUTSIDE] = None)

`checked` holds a constructor to it, `model.configuration.check` a plain configuration: for a node with a `_target_` the
signature of what that names, key by key and node by node, so that an error has the whole key
(`flow.flows.pixels.n_flows`). A class of somebody else's is held to the annotations that it has.
"""

import dataclasses
import functools
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args, get_origin

from flowdiff.errors import ConfigError, spell

Function = TypeVar("Function", bound=Callable[..., Any])
Product = TypeVar("Product")
MANY = 10**12  # without end, but for numbers that no machine counts to


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; with `above` or `below` the end itself is left out."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        """Whether `value` lies in it; NaN lies in none, an infinity only in one that is said to end there."""
        low = value > self.low if self.above else value >= self.low
        high = value < self.high if self.below else value <= self.high
        return low and high

    @property
    def words(self) -> str:
        """` from 1 to 1000`."""
        low = "" if self.low == -math.inf else f"{'above' if self.above else 'from'} {_number(self.low)}"
        if self.high >= MANY:
            return f" {low}" + ("" if self.above or not low else " up") if low else ""
        return f" {low}{' and ' if self.above and low else ' ' if low else ''}" + (
            f"below {_number(self.high)}"
            if self.below
            else f"{'to' if low and not self.above else 'at most'} {_number(self.high)}"
        )


@dataclass(frozen=True)
class Length:
    """Lists of `low` to `high` values."""

    low: int = 1
    high: int = 1000


@dataclass(frozen=True)
class Pattern:
    """Text of a form: a regular expression for all of it, and that form in words."""

    expression: str
    words: str


@dataclass(frozen=True)
class Outside:
    """What an argument names is read, written or fetched: a path, a switch that downloads, a name on a hub.

    A user says it. What a stored file says of it is not followed (`model.checkpoint`).
    """


OUTSIDE = Outside()


@dataclass(frozen=True)
class Later:
    """What is given is one part of it: its keys are checked when the others are known."""


LATER = Later()


@dataclass(frozen=True)
class Recipe(Generic[Product]):
    """What is to be built: plain values with a `_target_`, as conf/ has them; or an object, which is built already.

    `Recipe[T]` as an annotation says what has to come of it. `model.construction.build` follows it.

    Attributes:
        key: where it stands in the configuration, for errors.
        content: the node or the object.
    """

    key: str
    content: Any


Count = Annotated[int, Range(1, MANY)]
"""How many, where only patience sets a limit."""
Size = Annotated[int, Range(1, 65_536)]
"""Of what is held in memory: widths, lengths of embeddings."""
Layers = Annotated[int, Range(1, 1000)]
"""Steps, blocks or layers of a network."""
LARGEST = 1e30  # of a number that float32 computes with
Positive = Annotated[float, Range(0, LARGEST, above=True)]
Guidance = Annotated[float, Range(0, 1e6)]
LogScale = Annotated[float, Range(0, 20, above=True)]
"""Bound of the logarithms of scales."""
NonNegative = Annotated[float, Range(0, LARGEST)]
Share = Annotated[float, Range(0, 1)]
Sigma = Annotated[float, Range(0, 1e6, above=True)]
"""A noise level, in units of the data."""
Steps = Annotated[int, Range(1, 100_000)]
"""Of a sampler."""
Workers = Annotated[int, Range(0, 64)]
"""Threads that make batches ahead of the step; none: each batch when it is asked for."""
Seed = Annotated[int, Range(0, 2**32 - 1)]
Power = Annotated[float, Range(-10, 10)]
"""An exponent."""
Exponent = Annotated[float, Range(0, 10, above=True)]
LogSlope = Annotated[float, Range(0, 6, above=True)]
"""Bound of a spline's logarithms of slopes: beyond it its bins may vanish."""


def problem(value: Any, annotation: Any) -> str | None:
    """What is allowed where `value` isn't, in words ("must be a whole number from 1 to 1000"); None where it is.

    Args:
        value: a plain value: None, a number, text, a list, a dict.
        annotation: of the argument: a type, a union, a `Literal`, a list, a mapping, `Annotated` with a `Range` or a
            `Length`. Anything else is built from a node, and that is what must stand there.
    """
    words = _problem(value, annotation, ())
    return None if words is None else f"must be {words}"


def _problem(value: Any, annotation: Any, notes: tuple[Any, ...]) -> str | None:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _problem(value, arguments[0], (*notes, *arguments[1:]))
    if isinstance(annotation, TypeVar) or annotation in (Any, inspect.Parameter.empty, object):
        return None
    if origin in (typing.Union, types.UnionType):
        found = [_problem(value, each, notes) for each in arguments]
        if None in found:
            return None
        return " or ".join(dict.fromkeys(words for words in found if words))
    if origin is Recipe:
        return _problem(value, arguments[0], notes)
    if annotation in (None, type(None)):
        return None if value is None else "null"
    if origin is Literal:
        same = any(value == each and type(value) is type(each) for each in arguments)
        return None if same else "one of " + ", ".join(spell(each) for each in arguments)
    if annotation is bool:
        return None if isinstance(value, bool) else "true or false"
    if annotation in (int, float):
        return _number_problem(value, annotation, notes)
    if annotation is str:
        form = next((note for note in notes if isinstance(note, Pattern)), Pattern(r"(?s).+", "text"))
        return None if isinstance(value, str) and re.fullmatch(form.expression, value) else form.words
    if origin in (list, tuple, set, Sequence) or annotation in (list, tuple, Sequence):
        return _list_problem(value, arguments, notes)
    if origin in (dict, Mapping) or annotation in (dict, Mapping):
        return None if isinstance(value, Mapping) else "a mapping, as {key: value}"
    if dataclasses.is_dataclass(annotation):
        return None if isinstance(value, Mapping) else "a mapping, as {key: value}"
    if isinstance(value, Mapping):
        return None if "_target_" in value else "a node with a _target_"
    if not isinstance(value, type(None) | bool | int | float | str | list | tuple):
        return None  # an object
    return "a node with a _target_"


def _number_problem(value: Any, kind: type, notes: tuple[Any, ...]) -> str | None:
    span = next((note for note in notes if isinstance(note, Range)), Range(above=kind is float, below=kind is float))
    whole = isinstance(value, int) and not isinstance(value, bool)
    right = (whole or (kind is float and isinstance(value, float))) and span.holds(value)
    return None if right else ("a whole number" if kind is int else "a number") + span.words


def _list_problem(value: Any, arguments: tuple[Any, ...], notes: tuple[Any, ...]) -> str | None:
    each = next((a for a in arguments if a is not Ellipsis), Any)
    fixed = len(arguments) > 1 and Ellipsis not in arguments
    span = next((n for n in notes if isinstance(n, Length)), Length(len(arguments), len(arguments)) if fixed else None)
    element = _problem(object(), each, ()) if each is not Any else None
    size = "" if span is None else f"{span.low} to {span.high} " if span.low != span.high else f"{span.low} "
    words = f"a list of {size}values, each {element}" if element else "a list" + (f" of {size}values" if size else "")
    if not isinstance(value, list | tuple) or (span is not None and not span.low <= len(value) <= span.high):
        return words
    return words if any(_problem(item, each, ()) for item in value) else None


def _number(value: float) -> str:
    return f"{value:g}" if abs(value) < 1e6 and value != int(value) else f"{int(value)}"


@functools.lru_cache(maxsize=1024)
def options_of(target: Callable[..., Any]) -> dict[str, Any]:
    """The annotation of each argument of a class or function, by name; `**` in it, if it takes any others."""
    function = inspect.unwrap(getattr(target, "__init__")) if isinstance(target, type) else target  # noqa: B009
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception:  # a stranger's annotation that can't be resolved
        hints = {}
    try:
        parameters = inspect.signature(target).parameters.values()
    except (ValueError, TypeError):  # built in
        return {"**": Any}
    found: dict[str, Any] = {}
    for parameter in parameters:
        if parameter.kind is parameter.VAR_KEYWORD:
            found = _inherited_options(target) | found
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            found[parameter.name] = hints.get(parameter.name, Any)
    return found


def _inherited_options(target: Callable[..., Any]) -> dict[str, Any]:
    """What `**` stands for: the options of the class above, if there is one."""
    if not isinstance(target, type):
        return {"**": Any}
    owner = next(kind for kind in target.__mro__ if "__init__" in vars(kind))
    above = owner.__mro__[1]
    return {"**": Any} if above is object else options_of(above)


def is_outside(annotation: Any) -> bool:
    """Whether an argument is marked as `Outside`."""
    return get_origin(annotation) is Annotated and any(isinstance(a, Outside) for a in get_args(annotation)[1:])


def checked(function: Function) -> Function:
    """Hold a constructor to its annotations, whoever calls it.

    Raises:
        ConfigError: of the call; an argument is not what its annotation allows. Its key is the argument's name.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        options = _hints_of(function)
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if name in options:
                words = problem(value, options[name])
                if words is not None:
                    raise ConfigError(name, value, words)
        return function(*args, **kwargs)

    return typing.cast(Function, call)


@functools.lru_cache(maxsize=1024)
def _hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(function, include_extras=True)
    return {
        name: hint for name, hint in hints.items() if get_origin(hint) in CHECKED or hint in (int, float, bool, str)
    }


CHECKED = (Annotated, Literal, types.UnionType, typing.Union)


def snake_case(name: str) -> str:
    """`TwoMoons` to `two_moons`, `Dpmpp2mSde` to `dpmpp_2m_sde`."""
    return re.sub(r"(?<=.)([A-Z]|(?<!\d)\d)", r"_\1", name).lower()
