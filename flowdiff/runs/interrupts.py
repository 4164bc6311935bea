"""Ctrl-C, SIGTERM and a scheduler's SIGUSR1 or SIGUSR2: during training finish the step, save, say how to go on.

The first signal is only noted while a step runs, because between two steps is the one place where weights,
average, optimiser and data order belong together. A second signal stops at once; the last checkpoint on the
disk then counts. In a job of submitit it changes nothing: schedulers send several, and the last is a SIGKILL.

What comes while a process is already on its way out changes nothing for `PATIENCE` seconds. A worker of a launcher
(joblib's) leaves it to its parent to insist: a terminal's Ctrl-C reaches both, and the parent sends its own on.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, ClassVar, Self, TextIO

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
PATIENCE = 20.0


def is_scheduled() -> bool:
    """Whether this process belongs to a job of submitit."""
    return "SUBMITIT_EXECUTOR" in os.environ


def is_first() -> bool:
    """Whether this is the only process of its run, or the first of several."""
    return all(os.environ.get(name, "0") in ("", "0") for name in RANKS)


class Interrupted(BaseException):
    """A signal ended the run. No `Exception`: it also ends the sweep that the run belongs to.

    Args:
        number: the signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number
        self.said = False  # whether the user has been told

    @property
    def exit_code(self) -> int:
        """The shell's convention, 128 + the signal's number."""
        return 128 + self.number

    def say(self, line: str, stream: TextIO | None = None) -> None:
        """Tell the user, once."""
        if not self.said and is_first():
            print(line, file=stream, flush=True)
        self.said = True


class Interrupts:
    """While it is open, signals are noted in `received` (`patient`) or raise `Interrupted` at once.

    Within another one it takes that one's place; what it has received the other one knows as well.
    """

    in_worker: ClassVar[bool] = False  # of a launcher, whose main process decides how urgent it is
    ended_worker: ClassVar[bool] = False  # such a worker begins no other job
    _open: ClassVar["Interrupts | None"] = None

    def __init__(self) -> None:
        self.received: int | None = None
        self.patient = False
        self.processes: Callable[[], list[int]] = list
        self._before: dict[int, Any] = {}
        self._deferring = False
        self._outer: Interrupts | None = None
        self._since = 0.0
        self._process = os.getpid()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._outer, Interrupts._open = Interrupts._open, self
            self._before = {number: signal.getsignal(number) for number in SIGNALS}
            self.install()
        return self

    @classmethod
    def pass_on_to(cls, processes: Callable[[], list[int]]) -> None:
        """From now on the command's first signal is sent on to its workers, and waits for them."""
        if cls._open is not None:
            cls._open.patient, cls._open.processes = True, processes

    @classmethod
    def be_worker(cls) -> None:
        """This process is a launcher's worker: between two jobs a signal means that it begins no other one."""
        cls.in_worker = True
        for number in SIGNALS:
            signal.signal(number, lambda *given: setattr(cls, "ended_worker", True))

    def install(self) -> None:
        """Take the signals; again, if a library has put its own handler in place since."""
        for number in self._before:
            signal.signal(number, self._handle)

    @contextlib.contextmanager
    def defer(self) -> Iterator[None]:
        """Within it a signal waits for the end: an import of C++ that is torn may abort the process."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        if self.received is not None:
            raise Interrupted(self.received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a fork: its parent answers Ctrl-C, and ends it by SIGTERM
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        now = time.monotonic()
        first, stopping = self.received is None, not self.patient
        if first:
            self.received, self._since = number, now
            for process in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, number)
        elif is_scheduled() or self.in_worker or (stopping and now - self._since < PATIENCE):
            return
        if first and self.patient:
            if is_first() and not self.in_worker:
                hint = "" if is_scheduled() else " (again: stop at once)"
                print(f"\n{signal.Signals(number).name}: saving after this step{hint}", flush=True)
            return
        self.patient, self._since = False, now
        if first and self._deferring:
            return
        raise Interrupted(number)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._before:
            return
        Interrupts._open = self._outer
        if self._outer is not None and self.received is not None:
            self._outer.received, self._outer._since = self.received, time.monotonic()
        for number, handler in self._before.items():
            signal.signal(number, handler)


def ignore() -> None:
    """From now on no signal disturbs the end of this process, and no library's log comments on it."""
    logging.disable()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_quietly() -> None:
    """Until the command itself takes the signals, while it is being imported, Ctrl-C ends the process in one line."""
    signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: FrameType | None) -> None:
    print("interrupted", file=sys.stderr, flush=True)
    os._exit(128 + number)
