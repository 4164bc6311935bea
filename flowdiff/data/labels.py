"""Which class each sample is of: numbers and names of classes as they are typed, and as they are given in Python."""

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from flowdiff.errors import ConfigError, suggest

Labels = int | str | Sequence[int | str] | Tensor | None
"""`"balanced"` (0..K-1 in turn), a class by number or name, a list of both, or None or `"none"` (no class)."""


def resolve_labels(
    labels: Labels, n: int, num_classes: int, key: str = "class_label", names: Sequence[str] | None = None
) -> Tensor | None:
    """The class of each of `n` samples.

    A number is always a class's number and a string its name: the string "7" is the class of that name. The words
    balanced and none mean what they say even where a class has that name; in a list (["none"]) they are names.

    Args:
        labels: see `Labels`; a sequence shorter than `n` is repeated.
        n: number of samples.
        num_classes: K, 0 for an unconditional model.
        key: the name of the option in an error message.
        names: of the classes, in the order of their numbers.

    Returns:
        (n,) int64 in [0, K), or None: no class.
    """
    if labels is None or (isinstance(labels, str) and labels == "none"):
        return None
    if isinstance(labels, str) and labels == "balanced":
        return torch.arange(n) % num_classes if num_classes else None
    if num_classes == 0:
        raise ConfigError(key, _shown(labels), "this model is unconditional: leave it out")
    names, numbers = list(names or ()), labels
    try:
        if not isinstance(labels, Tensor):
            each = [labels] if isinstance(labels, str) or not isinstance(labels, Iterable) else labels
            numbers = [_number(name, names, key) if isinstance(name, str) else name for name in each]
        given = torch.as_tensor(numbers).flatten()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(key, _shown(labels), _allowed_labels(num_classes, names)) from error
    whole = not (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool)
    if not len(given) or not whole or bool(((given < 0) | (given >= num_classes)).any()):
        raise ConfigError(key, _shown(labels), _allowed_labels(num_classes, names))
    return given.to("cpu", torch.int64).repeat(-(-n // len(given)))[:n]


def _number(name: str, names: Sequence[str], key: str) -> int:
    """The number of the class of this name."""
    wanted = unicodedata.normalize("NFC", name)
    found = [c for c, each in enumerate(names) if unicodedata.normalize("NFC", each) == wanted]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(key, name, f"the classes {', '.join(map(str, found))} have this name: give a number")
    raise ConfigError(key, name, _allowed_labels(len(names), names) + suggest(name, names))


def typed_labels(value: Any, names: Sequence[str] | None, key: str = "class_label") -> Any:
    """What a command line means by a class: Hydra has read the name 7 as a number, and true as a bool.

    A number that is a class's number and another class's name, as with folders 1, 2, …, 12, could mean either.

    Args:
        value: what stands there, plain.
        names: of the model's classes.
        key: for the message.

    Returns:
        `value`, with names for what can only be a name.

    Raises:
        ConfigError: it is ambiguous.
    """
    if isinstance(value, list):
        return [typed_labels(each, names, key) for each in value]
    alike = [c for c, name in enumerate(names or ()) if _reads_as(name, value)]
    if not names or isinstance(value, str) or value is None or not alike:
        return value
    number = value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names) else None
    if number is not None and number not in alike:
        either = f"is the number of the class {names[number]!r} and the name of class {alike[0]}"
        words = " or ".join(f"""{key}="'{names[c]}'\"""" for c in (number, alike[0]))
        raise ConfigError(key, value, f"{either}: quote the name that is meant, {words}")
    return number if number is not None else names[alike[0]] if len(alike) == 1 else value


def _reads_as(name: str, value: Any) -> bool:
    """Whether a command line that says `name` gives this value."""
    if isinstance(value, bool):
        return name.casefold() == str(value).casefold()
    if isinstance(value, float):
        try:
            return float(name) == value
        except ValueError:
            return False
    return name == str(value)


def _shown(labels: object) -> object:
    return labels.tolist() if isinstance(labels, Tensor) else labels


def _allowed_labels(num_classes: int, names: Sequence[str] = ()) -> str:
    named = list(names) != [str(c) for c in range(len(names))]
    some = [*names[:20], "…"] if len(names) > 20 else names
    or_name = f", a name ({', '.join(some)})" if named and names else ""
    return f"must be a class from 0 to {num_classes - 1}{or_name}, a list, balanced (each in turn) or none (no class)"
