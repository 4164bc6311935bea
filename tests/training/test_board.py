"""Where a run is shown: closed however it ends, and what ended it is what is raised."""

import pytest

from flowdiff.training.board import closing


class Torn:
    """A board that a signal has torn."""

    def __init__(self) -> None:
        self.closed: list[bool] = []

    def show(self, name: str, picture: object, step: int) -> None: ...

    def end(self, final: object, step: int) -> None: ...

    def close(self, failed: bool) -> None:
        self.closed.append(failed)
        raise OSError("closing")


def test_what_ended_a_run_is_raised_and_all_boards_are_closed() -> None:
    boards = [Torn(), Torn()]
    with pytest.raises(KeyboardInterrupt), closing(boards):
        raise KeyboardInterrupt
    assert [board.closed for board in boards] == [[True], [True]]
    with pytest.raises(OSError, match="closing"), closing(boards[:1]):
        pass
    assert boards[0].closed == [True, False]
