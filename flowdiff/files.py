"""Files: read in bounds and as data, whoever wrote them; written whole or not at all."""

import contextlib
import errno
import fcntl
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from flowdiff.errors import FlowdiffError, one_line, spell

MOST_TEXT = 8 << 20  # bytes of a JSON or YAML file


class Unreadable(FlowdiffError):
    """A file can't be read; the message says why."""


def expand_user(path: str | os.PathLike[str]) -> Path:
    """The path with `~` written out, if that can be done."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no such user
        return Path(path)


def require_file(path: str | os.PathLike[str]) -> Path:
    """The path of a file that can be opened and read to its end: no folder, pipe, device or socket.

    Raises:
        Unreadable: it is none.
    """
    file = expand_user(path)
    try:
        mode = os.stat(file).st_mode
    except FileNotFoundError as error:
        raise Unreadable("no such file") from error
    except (OSError, ValueError) as error:  # a name that is too long, a loop of links, a zero byte
        raise Unreadable(f"can't be opened: {getattr(error, 'strerror', None) or error}") from error
    if stat.S_ISDIR(mode):
        raise Unreadable(f"a folder; give the file in it, as in {spell(file)}/checkpoints/last.ckpt")
    if not stat.S_ISREG(mode):
        raise Unreadable("not a regular file")
    return file


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether `require_file` takes it."""
    try:
        require_file(path)
    except Unreadable:
        return False
    return True


def _text(path: str | os.PathLike[str]) -> str:
    file = require_file(path)
    size = file.stat().st_size
    if size > MOST_TEXT:
        raise Unreadable(f"has {size:,} bytes, more than {MOST_TEXT:,}")
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
        raise Unreadable(f"can't be read: {one_line(error, 200)}") from error


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
        raise Unreadable(f"can't be read: {one_line(error, 200)}") from error


def make_folder(folder: str | os.PathLike[str], key: str) -> Path:
    """The folder, made if it is not there.

    Args:
        folder: a path.
        key: the configuration's key that names it, for the message.

    Raises:
        FlowdiffError: it can't be made; better known before the work than after it.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FlowdiffError(f"can't write to {key}={folder}: {error.strerror}") from error
    return path


def cache_folder() -> Path:
    """`FLOWDIFF_CACHE`, or ~/.cache/flowdiff."""
    return Path(os.environ.get("FLOWDIFF_CACHE") or Path.home() / ".cache" / "flowdiff").expanduser()


@contextlib.contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Within it no other process is within it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def require_folder(folder: str | os.PathLike[str]) -> None:
    """Raise a `FlowdiffError` if the folder that a program writes to has been removed: it isn't made again."""
    if not os.path.isdir(folder):
        raise FlowdiffError(f"{folder}: removed while the program was writing to it")


@contextlib.contextmanager
def report_removal(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Within it, that a file can't be written because its folder is gone is said of the folder that was removed.

    Args:
        folder: what was there when the work began, and all that was made in it.

    Raises:
        FlowdiffError: `folder`, or one in it, was removed.
    """
    try:
        yield
    except OSError as error:
        require_folder(folder)
        missing = Path(os.fsdecode(error.filename or ""))
        if error.errno != errno.ENOENT or Path(folder) not in missing.parents:
            raise
        while not missing.parent.is_dir():
            missing = missing.parent
        raise FlowdiffError(f"{missing}: removed while the program was writing to it") from error


def write_whole(path: str | os.PathLike[str], write: Callable[[BinaryIO], Any]) -> None:
    """`write_atomically` for results, many and small: not forced onto the disk one by one.

    Raises:
        FlowdiffError: it can't be written (a full disk, no permission); what stood there before is kept.
    """
    try:
        write_atomically(path, write, sync=False)
    except OSError as error:
        raise FlowdiffError(f"can't write {path}: {error.strerror or error}") from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """`write_whole` for text, in UTF-8."""
    write_whole(path, lambda file: file.write(text.encode()))


def write_json(path: str | os.PathLike[str], content: Any, **options: Any) -> None:
    """`write_whole` for plain values, as indented JSON; `options` are those of `json.dumps`."""
    write_text(path, json.dumps(content, indent=2, **options) + "\n")


def write_atomically(path: str | os.PathLike[str], write: Callable[[BinaryIO], Any], sync: bool = True) -> None:
    """Call `write(binary file)` on a temporary file in the folder of `path`, then rename it to that.

    With `sync` the contents are on the disk before the name is.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
