"""Progress of everything that takes longer than two seconds.

On a terminal it is one rich bar, which appears only once it is time to; elsewhere (a log file, a pipe, a cluster job)
it is a plain line now and then, so that logs stay readable. Both go to standard error: standard output keeps the
results. rich is imported when there is something to show.
"""

import functools
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn
    from rich.progress import Progress as Bar

BESIDE = 56  # columns of a terminal that what stands beside a bar takes
VALUES = "{task.fields[values]}"


class Progress:
    """A counter up to `total`, shown as a bar or as lines.

    Args:
        what: what is being done, e.g. `"sampling"`.
        total: number of steps.
        quiet: show nothing.
        delay: seconds before anything is shown.
        interval: seconds between two plain lines.
        done: the steps that were made before.
        stdout: it is a result, for standard output, and the bar stays when all is done.

    Example::

        with Progress("sampling", 100) as progress:
            for _ in range(100):
                progress.advance()
    """

    def __init__(
        self,
        what: str,
        total: int,
        quiet: bool = False,
        delay: float = 2.0,
        interval: float = 15.0,
        *,
        done: int = 0,
        stdout: bool = False,
    ) -> None:
        self.what, self.total, self.done = what, total, done
        self.quiet, self.delay, self.interval, self.stdout = quiet, delay, interval, stdout
        self._bar: Bar | None = None
        self._begin()

    def _begin(self) -> None:
        self._first, self._start, self._last = self.done, time.monotonic(), -self.interval

    def __enter__(self) -> Self:
        self._begin()
        return self

    @functools.cached_property
    def _console(self) -> "Console":
        from rich.console import Console

        return Console(stderr=not self.stdout)

    @property
    def has_bar(self) -> bool:
        """A bar is shown."""
        return self._bar is not None

    def advance(self, steps: int = 1, values: Callable[[], str] = str) -> None:
        """Count `steps` more and show it when it is time to.

        Args:
            steps: how many.
            values: what is shown beside the count; called when it is shown.
        """
        self.done += steps
        now = time.monotonic()
        if self.quiet or now - self._start < self.delay:
            return
        is_bar = self._console.is_terminal
        is_full = is_bar and self.done >= self.total
        if now - self._last < (0.2 if is_bar else self.interval) and not is_full:
            return
        self._last = now
        if is_bar:
            self._show_bar(values())
        else:
            print(self.describe(now - self._start, values()), file=None if self.stdout else sys.stderr, flush=True)

    def _show_bar(self, values: str) -> None:
        from rich.errors import LiveError
        from rich.progress import Progress

        if self._bar is None:
            columns = self.list_columns(self._console.width)
            self._bar = Progress(*columns, console=self._console, transient=not self.stdout)
            self._bar.add_task(self.what, total=self.total, completed=self.done, values=values)
            try:
                self._bar.start()
            except LiveError:  # another bar (the trainer's) has the terminal
                self._bar, self.quiet = None, True
                return
        self._bar.update(self._bar.task_ids[0], completed=self.done, values=values)

    def list_columns(self, width: int) -> "Sequence[str | ProgressColumn]":
        """What stands in the line of a terminal of `width` columns."""
        from rich.progress import MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn

        count, times = MofNCompleteColumn(), (TimeElapsedColumn(), TimeRemainingColumn())
        return ("{task.description}", make_bar(width), count, *times, VALUES)

    def describe(self, seconds: float, values: str) -> str:
        """The line that is printed after some seconds: `sampling: 30/100 (30 %), 3 s, 7 s left`."""
        rate = (self.done - self._first) / max(seconds, 1e-9)
        left = (self.total - self.done) / max(rate, 1e-9)
        share = 100.0 * self.done / max(self.total, 1)
        parts = [f"{self.what}: {self.done}/{self.total} ({share:.0f} %)", values, f"{seconds:.0f} s"]
        return ", ".join([part for part in parts if part] + [f"{left:.0f} s left"])

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def make_bar(width: int) -> "BarColumn":
    """As long as the terminal's width allows."""
    from rich.progress import BarColumn

    return BarColumn(max(4, min(40, width - BESIDE)))
