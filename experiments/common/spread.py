"""Repeated measurements as one cell of a table."""

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple


class Spread(NamedTuple):
    """The least, the median and the largest of some values."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """That of some values."""
        return cls(min(values), median(values), max(values))

    def text(self, form: str = "") -> str:
        """`median (min–max)`, each as `form` says, or with three digits, or all before the point."""
        low, middle, high = (form.format(value) if form else _digits(value) for value in self)
        return f"{middle} ({low}–{high})"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
