"""Paths that may name anything, and JSON and YAML that anyone may have written: read in bounds, and as data."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import yaml

from flowdiff.errors import FlowdiffError

TEXT = 8 << 20  # bytes of a JSON or YAML file


def printable(text: str) -> str:
    """Text of one line without control characters."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


class Unreadable(FlowdiffError):
    """A file can't be read; the message says why, in one line whatever the file holds."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def shown(path: str | os.PathLike[str]) -> str:
    """A path, or another text, for a message: one line, no control characters, not longer than a line."""
    text = "".join(c if c.isprintable() else "?" for c in os.fspath(path))
    return text if len(text) <= 200 else f"{text[:80]}…{text[-80:]}"


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with `~` written out, if that can be done."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no such user
        return Path(path)


def regular(path: str | os.PathLike[str]) -> Path:
    """The path of a file that can be opened and read to its end: no folder, pipe, device or socket.

    Raises:
        Unreadable: it is none.
    """
    file = expanded(path)
    try:
        mode = os.stat(file).st_mode
    except FileNotFoundError as error:
        raise Unreadable("no such file") from error
    except (OSError, ValueError) as error:  # a name that is too long, a loop of links, a zero byte
        raise Unreadable(f"can't be opened: {getattr(error, 'strerror', None) or error}") from error
    if stat.S_ISDIR(mode):
        raise Unreadable(f"a folder; give the file in it, as in {shown(file)}/checkpoints/last.ckpt")
    if not stat.S_ISREG(mode):
        raise Unreadable("not a regular file")
    return file


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether `regular` takes it."""
    try:
        regular(path)
    except Unreadable:
        return False
    return True


def _text(path: str | os.PathLike[str]) -> str:
    file = regular(path)
    size = file.stat().st_size
    if size > TEXT:
        raise Unreadable(f"has {size:,} bytes, more than {TEXT:,}")
    try:
        return file.read_bytes().decode("utf-8")
    except (OSError, ValueError) as error:
        raise Unreadable(f"can't be read: {getattr(error, 'strerror', None) or 'not UTF-8'}") from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value of a JSON file.

    Raises:
        Unreadable: it is none, too long, or too deeply nested.
    """
    text = _text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError, MemoryError) as error:
        raise Unreadable(f"can't be read: {' '.join(str(error).split())[:200]}") from error


class _Plain(yaml.SafeLoader):
    """YAML without aliases: a few lines of them unfold to gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases are not followed")
        return super().compose_node(parent, index)


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """The plain value of a YAML file; interpolations stay text.

    Raises:
        Unreadable: it is none, too long, or too deeply nested.
    """
    text = _text(path)
    try:
        return yaml.load(text, _Plain)
    except (yaml.YAMLError, ValueError, RecursionError, MemoryError) as error:
        raise Unreadable(f"can't be read: {' '.join(str(error).split())[:200]}") from error
