"""Ctrl-C, SIGTERM and a scheduler's SIGUSR1 or SIGUSR2 during training: finish the step, save, say how to go on.

The first signal is only noted while a step runs, because between two steps is the one place where weights,
average, optimiser and data order belong together. A second signal stops at once; the last checkpoint on the
disk then counts. In a job of submitit it changes nothing: schedulers send several, and the last is a SIGKILL.
"""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def scheduled() -> bool:
    """Whether this process belongs to a job of submitit."""
    return "SUBMITIT_EXECUTOR" in os.environ


class Interrupted(BaseException):
    """A signal ended the run. No `Exception`: it also ends the sweep that the run belongs to."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number

    @property
    def exit_code(self) -> int:
        """The shell's convention, 128 + the signal's number."""
        return 128 + self.number


class Interrupts:
    """While it is open, signals are noted in ``received`` (``patient``) or raise `Interrupted` at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.patient = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in SIGNALS}
            self.install()
        return self

    def install(self) -> None:
        """Take the signals; again, if a library has put its own handler in place since."""
        for number in self._before:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self.received = self.received is not None, self.received or number
        if again and scheduled():
            return
        if again or not self.patient:
            raise Interrupted(number)
        hint = "" if scheduled() else " (again: stop at once)"
        print(f"\n{signal.Signals(number).name}: saving after this step{hint}", flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
