"""Files of a run folder, which may come from anyone: small, regular, its own, or not read.

A link that leads out of the folder isn't followed: a report is sent to others, and would carry what the link points at.
"""

import json
import stat
from pathlib import Path
from typing import Any

from flowdiff.files import Unreadable

MOST_JSON = 2**22
MOST_LOG = 2**26
MOST_PICTURE = 2**25
PNG = b"\x89PNG\r\n\x1a\n"


def find_file(folder: Path, name: str, most: int) -> Path | None:
    """The path of a regular file in a run's folder; None where there is nothing.

    Args:
        folder: of the run.
        name: of the file, relative to it.
        most: bytes that it may have.

    Raises:
        Unreadable: it is larger, no regular file, or a link that leads out of the folder.
    """
    path = folder / name
    try:
        real = path.resolve(strict=True)
        found = real.stat()
    except (OSError, RuntimeError, ValueError):  # nothing, a circle of links, a name with a null in it
        return None
    if not real.is_relative_to(folder.resolve()):
        raise Unreadable(f"{name}: a link out of the run folder, not followed")
    if not stat.S_ISREG(found.st_mode):
        raise Unreadable(f"{name}: no regular file, not read")
    if found.st_size > most:
        raise Unreadable(f"{name}: {found.st_size:,} bytes, more than {most:,}: not read")
    return real


def read(folder: Path, name: str, most: int = MOST_JSON) -> str:
    """The text of a file; empty where there is nothing.

    Raises:
        Unreadable: see `find_file`.
    """
    path = find_file(folder, name, most)
    if path is None:
        return ""
    try:
        with path.open("rb") as file:
            return file.read(most).decode(errors="replace")
    except OSError as error:
        raise Unreadable(f"{name}: {error.strerror}") from error


def read_json(folder: Path, name: str) -> Any:
    """What a JSON file holds; None where there is nothing, or half of it.

    Raises:
        Unreadable: see `find_file`; or it is nested too deeply.
    """
    try:
        return json.loads(read(folder, name) or "null")
    except Unreadable:
        raise
    except RecursionError:
        raise Unreadable(f"{name}: nested too deeply, not read") from None
    except ValueError:
        return None


def find_picture(folder: Path, name: str) -> Path | None:
    """The path of a PNG; None where there is none.

    Raises:
        Unreadable: see `find_file`; or it is no PNG.
    """
    path = find_file(folder, name, MOST_PICTURE)
    if path is None:
        return None
    with path.open("rb") as file:
        if file.read(len(PNG)) != PNG:
            raise Unreadable(f"{name}: no PNG, not shown")
    return path
