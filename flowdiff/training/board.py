"""What a run shows to people beside its numbers: on TensorBoard and Weights & Biases (`training.loggers`)."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
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
    """Close them at the end of the block. What ends it, an error or a signal that tore one of them, is what is raised:
    errors of closing are not."""
    try:
        yield
    except BaseException:
        for board in boards:
            with suppress(Exception):
                board.close(failed=True)
        raise
    for board in boards:
        board.close(failed=False)
