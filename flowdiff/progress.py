"""Progress of everything that takes longer than two seconds.

On a terminal it is one rich bar, which appears only once two seconds have passed; elsewhere (a log file, a
pipe, a cluster job) it is a plain line now and then, so that logs stay readable. Both go to standard error:
standard output keeps the results. rich is imported when there is something to show.
"""

import functools
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar


class Progress:
    """A counter from 0 to `total`, shown as a bar or as lines.

    Args:
        what: what is being done, e.g. `"sampling"`.
        total: number of steps.
        quiet: show nothing.
        delay: seconds before anything is shown.
        interval: seconds between two plain lines.

    Example::

        with Progress("sampling", 100) as progress:
            for _ in range(100):
                progress.advance()
    """

    def __init__(self, what: str, total: int, quiet: bool = False, delay: float = 2.0, interval: float = 15.0) -> None:
        self.what, self.total, self.done = what, total, 0
        self.quiet, self.delay, self.interval = quiet, delay, interval
        self._bar: Bar | None = None
        self._start = self._last = time.monotonic()

    def __enter__(self) -> Self:
        self._start = self._last = time.monotonic()
        return self

    @functools.cached_property
    def _console(self) -> "Console":
        from rich.console import Console

        return Console(stderr=True)

    def advance(self, steps: int = 1) -> None:
        """Count `steps` more and show it when it is time to."""
        self.done += steps
        now = time.monotonic()
        if self.quiet or now - self._start < self.delay:
            return
        if self._console.is_terminal:
            self._show_bar()
        elif self._last == self._start or now - self._last >= self.interval:
            self._last = now
            self._print_line(now - self._start)

    def _show_bar(self) -> None:
        from rich.errors import LiveError
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._bar.add_task(self.what, total=self.total, completed=self.done)
            try:
                self._bar.start()
            except LiveError:  # another bar (the trainer's) has the terminal
                self._bar, self.quiet = None, True
                return
        self._bar.update(self._bar.task_ids[0], completed=self.done)

    def _print_line(self, seconds: float) -> None:
        left = seconds * (self.total - self.done) / max(self.done, 1)
        share = 100.0 * self.done / max(self.total, 1)
        print(
            f"{self.what}: {self.done}/{self.total} ({share:.0f} %), {seconds:.0f} s, {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
