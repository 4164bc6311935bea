"""A user's mistake is one line: the key, its value and what is allowed, printed without a traceback."""

import math

from flowdiff.text import one_line


class FlowdiffError(Exception):
    """Something the user can put right. The message is one line that says how, fit for a terminal."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class NonFiniteError(FlowdiffError):
    """The loss or its gradient is NaN or infinite."""


class ConfigError(FlowdiffError):
    """A configuration value that is not allowed.

    Args:
        key: the key as it is typed on the command line, e.g. `flow.n_flows`.
        value: the value given.
        allowed: what would be accepted, in words.
    """

    def __init__(self, key: str, value: object, allowed: str) -> None:
        super().__init__(f"{key}={shown(value)}: {allowed}")
        self.key, self.value, self.allowed = key, value, allowed


def shown(value: object) -> str:
    """A value as it is typed on a command line, on one line, cut where it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if value == "":
        return "''"
    text = "".join(c if c.isprintable() else " " for c in str(value))
    return text if len(text) <= 200 else f"{text[:200]}…"


def is_number(value: object) -> bool:
    """Whether it is a finite int or float; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def positive(key: str, value: float) -> float:
    """`value` if it is a finite number above 0, else a `ConfigError` that names `key`."""
    if not (is_number(value) and value > 0):
        raise ConfigError(key, value, "must be a number above 0")
    return value


def at_least(key: str, value: int, least: int) -> int:
    """`value` if it is an integer ≥ `least`, else a `ConfigError` that names `key`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(key, value, f"must be a whole number from {least} up")
    return value
