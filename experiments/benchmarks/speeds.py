"""Speeds of contenders as tables and a picture: each cell is the median over the rounds (min–max).

A row is a contender and a `Measure`: `value` and `ratio` (to the default's value in the same round) are each
(min, median, max), beside the evaluations of a sample that `samplers.batched.BatchedSampler` counted.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from experiments.benchmarks.plot import save
from experiments.benchmarks.table import Column, filled, to_csv, to_markdown
from flowdiff.files import write_text

DEFAULT = "default"  # the contender that the others are compared with
IMAGES, EPOCH, SAMPLING = "images_per_second", "seconds_per_epoch", "seconds_per_100"
HEADINGS = {IMAGES: "images/s", EPOCH: "s an epoch", SAMPLING: "s per 100"}
COLOURS = {"guide": "#e07a5f", DEFAULT: "#2a6f97", "unet": "#6c757d"}
Spread = tuple[float, float, float]
Row = dict[str, Any]


class Measure(NamedTuple):
    """What is measured; of sampling also how it is done."""

    what: str
    sampler: str | None = None
    steps: int | None = None


def number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def shown(spread: Spread) -> str:
    """`median (min–max)`."""
    low, middle, high = map(number, spread)
    return f"{middle} ({low}–{high})"


def part(key: str, index: int, name: str) -> Column:
    """One number of a spread, for CSV."""
    return Column(f"{key}_{name}", name, lambda row: row[key][index])


MODEL = Column("model", "model", lambda row: row["model"])
SAMPLER = Column("sampler", "sampler", lambda row: row["measure"].sampler)
STEPS = Column("steps", "steps", lambda row: row["measure"].steps)
COUNTS = [
    Column("nfe", "NFE", lambda row: row.get("nfe"), "{:g}"),
    Column("nfe_forward", "forward", lambda row: row.get("nfe_forward")),
    Column("nfe_gradient", "gradient", lambda row: row.get("nfe_gradient")),
    Column("inversions", "inversions", lambda row: row.get("inversions")),
]
CSV = (
    *(Column("measure", "measure", lambda row: row["measure"].what), SAMPLER, STEPS, MODEL, *COUNTS),
    *(part(key, i, name) for key in ("value", "ratio") for i, name in enumerate(("min", "median", "max"))),
)


def columns(measure: str) -> list[Column]:
    """Of the table that shows a measure."""
    value = Column(measure, HEADINGS[measure], lambda row: shown(row["value"]))
    ratio = Column("ratio", "× default", lambda row: shown(row["ratio"]))
    return [SAMPLER, STEPS, MODEL, *COUNTS, value, ratio]


def tables(rows: Sequence[Row]) -> list[tuple[list[Column], list[Row]]]:
    """One for each measure: its columns that are not empty, and its rows."""
    found = []
    for measure in HEADINGS:
        mine = [row for row in rows if row["measure"].what == measure]
        found.append((filled(columns(measure), mine), mine))
    return found


def report(rows: Sequence[Row], out: Path, name: str, title: str, lines: Sequence[str]) -> None:
    """Write `name`.csv, .md and .png to `out` and print the tables.

    Args:
        rows: see above.
        out, name: of the files.
        title: heading of all of them.
        lines: paragraphs on the conditions, between heading and tables.
    """
    write_text(out / f"{name}.csv", to_csv(CSV, rows))
    parts = [f"**{title}**", *lines, *(to_markdown(*table).rstrip() for table in tables(rows))]
    write_text(out / f"{name}.md", "\n\n".join(parts) + "\n")
    plot(rows, title, out / f"{name}.png")
    console = Console()
    console = Console(width=console.width if console.is_terminal else max(console.width, 120))
    console.print(title, *lines, sep="\n", markup=False, highlight=False)
    for shown_columns, mine in tables(rows):
        grid = Table()
        for column in shown_columns:
            grid.add_column(column.heading, justify="left" if column in (SAMPLER, MODEL) else "right")
        for row in mine:
            grid.add_row(*(column.text(row) for column in shown_columns))
        console.print(grid)


def plot(rows: Sequence[Row], title: str, path: Path) -> None:
    """Seconds for 100 samples against the sampler's steps; the inversion of a flow is a level of its own."""
    figure = Figure(figsize=(6.4, 4.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    sampled = [row for row in rows if row["measure"].what == SAMPLING]
    for name, colour in COLOURS.items():
        mine = [row for row in sampled if row["model"] == name]
        walks = [row for row in mine if row["measure"].steps is not None]
        low, middle, high = zip(*(row["value"] for row in walks), strict=True)
        steps = [row["measure"].steps for row in walks]
        axes.plot(steps, middle, marker="o", color=colour, label=f"{name}, ancestral")
        axes.fill_between(steps, low, high, color=colour, alpha=0.2)
        for row in mine:
            if row["measure"].steps is None:
                axes.axhline(row["value"][1], color=colour, linestyle=":", label=f"{name}, inversion")
    axes.set(xscale="log", yscale="log", xlabel="steps", ylabel="seconds for 100 samples", title=title)
    ticks = sorted({row["measure"].steps for row in sampled} - {None})
    axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
    axes.minorticks_off()
    axes.legend(fontsize=8)
    save(figure, path)
