"""What a run shows to people beside its numbers: on TensorBoard and Weights & Biases (`training.loggers`)."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Board(Protocol):
    """A logger that takes pictures, and what was measured at the end."""

    def show(self, name: str, picture: Tensor, step: int) -> None:
        """A picture (C, H, W), uint8."""

    def end(self, final: Mapping[str, float], step: int) -> None:
        """The final metrics, as `final/<name>`."""

    def close(self, failed: bool) -> None:
        """However the run has ended; what is logged later is another run's."""


@contextmanager
def closing(boards: Iterable[Board]) -> Iterator[None]:
    """Close them at the end of the block, whatever ends it."""
    failed = True
    try:
        yield
        failed = False
    finally:
        for board in boards:
            board.close(failed)
