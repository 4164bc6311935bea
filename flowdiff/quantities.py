"""What a number in metrics.json is: its unit, which way is better, whether it stands for its kind in plots.

A metric says this of what it reports (`metrics.base.Metric.quantities`), and it is written beside each value, so
that reports, comparisons and searches need no list of names. Files from before that have no such entries are read by
what the package's metrics say today; of a name that none of them knows nothing is said: no verdict, no best value.
Nothing here needs torch: a report reads files.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

Better = Literal["higher", "lower"]
REAL = "/real"  # behind a key: the same, measured of real data


@dataclass(frozen=True)
class Quantity:
    """A number that a metric reports, under one key or under several that differ in one place.

    Attributes:
        key: in metrics.json; `*` stands for what settings fill in, a noise level or an extractor. The same of real
            data stands at `<key>/real` and needs no quantity of its own.
        unit: as "bits/dim" or "s"; "" is a pure number, None is unknown.
        better: "higher" or "lower"; None: neither, nobody gives a verdict.
        plotted: the key that a report plots, if it was measured, else the first one of `key`; None: no plot.
        column: the key that is a column of TensorBoard's HParams, likewise.
        reference: of the data or of a reference, not of the model: stands beside it and is never compared.

    Raises:
        ValueError: `better` is something else.
    """

    key: str
    unit: str | None = ""
    better: Better | None = None
    plotted: str | None = None
    column: str | None = None
    reference: bool = False

    def __post_init__(self) -> None:
        if self.better not in (None, *get_args(Better)):
            raise ValueError(f"better={self.better} of {self.key}: must be higher, lower or None")

    def covers(self, name: str) -> bool:
        """Whether a key of metrics.json is one of these, of the model or of real data."""
        pattern = re.escape(self.key).replace(r"\*", "[^/]+")
        return re.fullmatch(pattern, name.removesuffix(REAL)) is not None

    def entry(self) -> dict[str, Any]:
        """What is written of it beside the value."""
        marks = ({"plotted": True} if self.plotted else {}) | ({"of_model": False} if self.reference else {})
        return {"unit": self.unit, "better": self.better} | marks


def choose(quantity: Quantity, wanted: str, names: Sequence[str]) -> str | None:
    """Of the measured names those of a quantity: the wanted one, else the first; None: nothing was measured."""
    mine = [name for name in names if quantity.covers(name) and not name.endswith(REAL)]
    return wanted if wanted in mine else next(iter(mine), None)


def resolve(known: Iterable[Quantity], names: Sequence[str]) -> dict[str, Quantity]:
    """The quantity of each measured name, with that name as its key; `plotted` is kept where it is the one plotted.

    A name that no quantity covers has no unit and no direction. The first of those that are alike up to a `/` is
    plotted all the same.
    """
    listed, found, strangers = list(known), {}, set()
    shown = {choose(quantity, quantity.plotted, names) for quantity in listed if quantity.plotted}
    for name in names:
        quantity = next((each for each in listed if each.covers(name)), None)
        real = name.endswith(REAL)
        if quantity is None:
            kind = name.partition("/")[0]
            new = not real and kind not in strangers
            strangers.add(kind)
            found[name] = Quantity(name, None, plotted=name if new else None, reference=real)
        else:
            plotted = name if name in shown else None
            found[name] = replace(quantity, key=name, plotted=plotted, reference=quantity.reference or real)
    return found


def from_entries(
    entries: Mapping[str, Mapping[str, Any]], declared: Callable[[], Iterable[Quantity]]
) -> dict[str, Quantity]:
    """The quantities of the entries of a metrics.json.

    Args:
        entries: by name; each says itself what it is, or was written before entries did.
        declared: what the metrics say (`metrics.base.list_quantities`), asked where there is one of those.
    """
    old = [name for name, entry in entries.items() if "better" not in entry]
    found = {name: _said(name, entry) for name, entry in entries.items() if name not in old}
    return found | (resolve(declared(), old) if old else {})


def _said(name: str, entry: Mapping[str, Any]) -> Quantity:
    """By what a file says, which may be anything."""
    unit, better = entry.get("unit"), entry.get("better")
    return Quantity(
        name,
        unit if isinstance(unit, str) else None,
        better if better in get_args(Better) else None,
        plotted=name if entry.get("plotted") is True else None,
        reference=entry.get("of_model") is False,
    )
