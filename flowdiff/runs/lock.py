"""One process a folder: the lock on what a run or a sweep writes into.

`.lock` in the folder is locked by the operating system (`filelock`), which lets go when the process ends, however it
ends. Its text says which process that is, for the others' messages; it is removed when the work ends, so that a text
without a lock is that of a process that was killed. From another machine this can't be told for certain: there the
text alone refuses, and the message says what to do. All processes of one run share the lock of their first.
"""

import contextlib
import json
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from flowdiff.errors import FlowdiffError
from flowdiff.runs import slurm
from flowdiff.runs.interrupts import is_first

NAME = ".lock"
SECONDS = 0.3  # that a lock is asked for: who only looks holds it for a moment, and a holder's text follows its lock

_ours: set[tuple[int, Path]] = set()  # process and folder: a child process has no part in what its parent holds


class OtherJob(FlowdiffError):
    """A folder is in use by another job, or by another process: nothing may be written to it."""


@dataclass(frozen=True)
class Holder:
    """The process that works in a folder, or worked in it when it was killed."""

    host: str
    pid: int
    job_id: str | None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@contextlib.contextmanager
def occupy(folder: Path, exclusive: bool = True) -> Iterator[Holder | None]:
    """Within it no other process works in the folder, which is there already.

    Args:
        folder: of a run or a sweep.
        exclusive: False: only another one's work is respected; several processes may do so at once.

    Yields:
        The killed process from which the folder was taken over, if there was one.

    Raises:
        OtherJob: another process works in it, or did so on another machine and did not come to its end.
        FlowdiffError: this process works in it already, and it has been removed and made again since.
    """
    ours = (os.getpid(), folder.resolve())
    file = ours[1] / NAME
    if ours in _ours and exclusive and not file.is_file():
        raise FlowdiffError(f"{folder}: removed while the program was writing to it")
    if ours in _ours or not is_first() or not (exclusive or file.is_file()):
        yield None
        return
    lock = _acquire(file, folder)
    if not exclusive:
        lock.release()
        yield None
        return
    try:
        before = _holder(file)
        me = Holder(platform.node(), os.getpid(), slurm.job_id())
        if before is not None and before.host != me.host and (me.job_id is None or before.job_id != me.job_id):
            raise OtherJob(
                f"{folder}: in use by {before}, which can't be seen from here; if it has ended, remove {file}"
            )
        file.write_text(json.dumps(asdict(me)))
        _ours.add(ours)
        try:
            yield before
        finally:
            _ours.discard(ours)
            file.unlink(missing_ok=True)  # still locked: who waits for it sees that it is gone, and makes a new one
    finally:
        lock.release()


def _acquire(file: Path, folder: Path) -> FileLock:
    lock = FileLock(file)
    try:
        lock.acquire(timeout=SECONDS)
    except Timeout:
        end = time.monotonic() + SECONDS
        while (holder := _holder(file)) is None and time.monotonic() < end:
            time.sleep(0.02)
        raise OtherJob(f"{folder}: in use by {holder or 'another process'}; a folder takes one process") from None
    return lock


def _holder(file: Path) -> Holder | None:
    """Who the text names; None where there is no such text."""
    try:
        found = json.loads(file.read_text())
        return Holder(str(found["host"]), int(found["pid"]), found["job_id"] and str(found["job_id"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
