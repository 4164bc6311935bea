"""What a run shows to people beside its numbers: on TensorBoard and Weights & Biases (`training.loggers`)."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Board(Protocol):
    """A logger that takes pictures, and what was measured at the end."""

    def show(self, name: str, picture: Tensor, step: int) -> None:
        """A picture (C, H, W), uint8."""

    def end(self, final: Mapping[str, float], step: int) -> None:
        """The final metrics, as `final/<name>`; nothing follows."""
