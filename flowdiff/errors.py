"""A user's mistake is one line: the key, its value and what is allowed, printed without a traceback.

What a message quotes may come from anyone: `one_line` leaves nothing in it that a terminal would obey.
"""

import difflib
import math
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

#: CSI, OSC and the like, two-character escapes: what a terminal would obey.
SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b."
)
JOINERS = "\u200c\u200d"  # between letters of some scripts, and parts of an emoji
LONGEST = 200  # characters of a value in a message


def one_line(text: object, longest: int | None = None) -> str:
    """Text from anywhere as one line: without control sequences, white space one blank, `?` for what isn't printable.

    Args:
        text: what is to be shown; of an error its message, or the name of its class where that is empty.
        longest: characters at most, from 3 up; the middle of a longer line is left out.
    """
    words = SEQUENCES.sub("", str(text)).split() or [type(text).__name__] * isinstance(text, BaseException)
    line = "".join(c if c.isprintable() or c in JOINERS else "?" for c in " ".join(words))
    if longest is None or len(line) <= longest:
        return line
    return f"{line[: longest // 2]}…{line[len(line) - (longest - 1) // 2 :]}"


def spell(value: object) -> str:
    """A value as it is typed on a command line, on one line, without its middle where it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return one_line(value, LONGEST) or "''"


def suggest(given: str, names: Iterable[str], before: str = "") -> str:
    """`; did you mean NAME?`, if one of the names is near to what was given.

    Args:
        given: a word that is none of them.
        names: those that there are.
        before: what stands before the name where it is typed.
    """
    near = difflib.get_close_matches(given, list(names), n=1)
    return f"; did you mean {before}{near[0]}?" if near else ""


def how_to_install(extra: str) -> str:
    """The command that installs an extra of this package, from any folder: of its checkout if it runs from one, else
    of the installed package, whatever its wheel came from."""
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / "pyproject.toml").is_file():
        return f"pip install {shlex.quote(f'flowdiff[{extra}]')}"
    place = "." if checkout == Path.cwd() else str(checkout)
    return f"pip install -e {shlex.quote(f'{place}[{extra}]')}"


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
        super().__init__(f"{key}={spell(value)}: {allowed}")
        self.key, self.value, self.allowed = key, value, allowed


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
