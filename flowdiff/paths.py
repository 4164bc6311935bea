"""Paths that may name anything: whether there is a file to be read, and how they are shown."""

import os
import stat
from pathlib import Path

from flowdiff.errors import FlowdiffError


class Unreadable(FlowdiffError):
    """A file can't be read; the message says why."""


def shown(path: str | os.PathLike[str]) -> str:
    """A path for a message: one line, no control characters, not longer than a line."""
    text = "".join(c if c.isprintable() else "?" for c in os.fspath(path))
    return text if len(text) <= 200 else f"{text[:80]}…{text[-80:]}"


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with ``~`` written out, if that can be done."""
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
