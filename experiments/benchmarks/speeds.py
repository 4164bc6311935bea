"""Speeds of contenders as tables and a picture: each cell is the median over the rounds (min–max).

A row is a contender and a `Measure`: `value` and `ratio` (to the default's value in the same round) are each a
`experiments.common.spread.Spread`, beside the evaluations of a sample that `samplers.batched.BatchedSampler` counted.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from experiments.common.columns import Column, Row, rounded, to_csv
from flowdiff.evaluation import tables
from flowdiff.files import write_text
from flowdiff.reports.figures import save_figure

DEFAULT = "default"  # the contender that the others are compared with
IMAGES, EPOCH, SAMPLING = "images_per_second", "seconds_per_epoch", "seconds_per_100"
HEADINGS = {IMAGES: "images/s", EPOCH: "s an epoch", SAMPLING: "s per 100"}
COLOURS = {"guide": "#e07a5f", DEFAULT: "#2a6f97", "unet": "#6c757d"}


class Measure(NamedTuple):
    """What is measured; of sampling also how it is done."""

    what: str
    sampler: str | None = None
    steps: int | None = None


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
    value = Column(measure, HEADINGS[measure], lambda row: row["value"].text())
    ratio = Column("ratio", "× default", lambda row: row["ratio"].text())
    return [SAMPLER, STEPS, MODEL, *COUNTS, value, ratio]


def grids(rows: Sequence[Row]) -> list[tuple[list[str], list[list[str]]]]:
    """Headings and cells of a table for each measure."""
    return [rounded(columns(what), [row for row in rows if row["measure"].what == what]) for what in HEADINGS]


def report(rows: Sequence[Row], out: Path, name: str, title: str, lines: Sequence[str]) -> None:
    """Write `name`.csv, .md and .png to `out` and print the tables.

    Args:
        rows: see above.
        out, name: of the files.
        title: heading of all of them.
        lines: paragraphs on the conditions, between heading and tables.
    """
    write_text(out / f"{name}.csv", to_csv(CSV, rows))
    paragraphs = [f"**{title}**", *lines, *(tables.to_markdown(*grid).rstrip() for grid in grids(rows))]
    write_text(out / f"{name}.md", "\n\n".join(paragraphs) + "\n")
    plot(rows, title, out / f"{name}.png")
    print(title, *lines, sep="\n")
    for header, cells in grids(rows):
        tables.show(header, cells, right=[heading for heading in header if heading not in ("sampler", "model")])


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
    save_figure(figure, path)
