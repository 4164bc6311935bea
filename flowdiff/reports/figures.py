"""Plots of a sweep: a metric against each studied key, means and jobs as points, and the curves of training."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from flowdiff.evaluation.text import to_label
from flowdiff.files import Unreadable, write_whole
from flowdiff.reports import summary
from flowdiff.runs.job_folders import Job, better
from flowdiff.runs.run_files import MOST_LOG, read

CURVES = ("train/loss", "val/loss", "val/bits_per_dim")
ACROSS, MOST = 4, 24  # panels in a row, and in all
SIDE = {"higher": " (more is better)", "lower": " (less is better)"}


def numeric(values: Sequence[str]) -> list[float] | None:
    """The values as finite numbers, None if one of them is none."""
    try:
        found = [float(value) for value in values]
    except ValueError:
        return None
    return found if all(math.isfinite(number) for number in found) else None


def plot_against(jobs: Sequence[Job], key: str, line: str | None, path: Path) -> Path | None:
    """Plot the metrics against the values of a key, numbers or names. None: nothing was measured.

    Args:
        jobs: of the sweep.
        key: on the horizontal axis.
        line: a second key, with a colour for each of its values; None: all jobs together.
        path: of the PNG.
    """
    shown = summary.list_plotted(jobs)[:MOST]
    if not shown:
        return None
    values = summary.values(jobs, key)
    places = numeric(values)
    figure, panels = make_panels(len(shown))
    groups = [None] if line is None else summary.values(jobs, line)
    for axes, metric in zip(panels, shown, strict=True):
        for i, group in enumerate(groups):
            mine = [job for job in jobs if line is None or job.overrides.get(line) == group]
            found = [summary.read_measured(mine, key, value, metric) for value in values]
            label = None if group is None else to_label(f"{line}={group}")
            beside = (i - (len(groups) - 1) / 2) * 0.6 / len(groups)
            at = [n + beside for n in range(len(values))] if places is None else places
            means(axes, at, found, label, colour(i), joined=places is not None and summary.few(jobs, key))
        axes.set_title(to_label(metric) + SIDE.get(better(jobs, metric) or "", ""), fontsize=9)
        axes.set_xlabel(to_label(key))
        if places is None:
            axes.set_xticks(range(len(values)), map(to_label, values), rotation=30, ha="right", fontsize=8)
            axes.set_xlim(-0.6, len(values) - 0.4)
        else:
            if min(places) > 0 and max(places) >= 8 * min(places):
                axes.set_xscale("log")
            if summary.few(jobs, key):
                axes.set_xticks(places, map(to_label, values))
                axes.minorticks_off()
        axes.grid(alpha=0.3)
    if line is not None:
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", fontsize=7)
    return save_figure(figure, path)


def make_panels(n: int, across: int = ACROSS) -> tuple[Figure, list[Axes]]:
    """A figure of n panels, in rows of so many at most."""
    across = min(n, across)
    down = -(-n // across)
    figure = Figure(figsize=(4.2 * across, 3.6 * down), dpi=110, layout="constrained")
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    for unused in panels[n:]:
        unused.remove()
    return figure, panels[:n]


Colour = tuple[float, float, float, float]
Measured = list[tuple[str | None, float]]


def colour(i: int) -> Colour:
    """Of the i-th group."""
    return colormaps["tab10"](i % 10)


def means(
    axes: Axes, places: Sequence[float], found: Sequence[Measured], label: str | None, colour: Colour, joined: bool
) -> None:
    """Means over seeds with their standard errors, joined or not; each job a dot. There are no bars: an axis needn't
    begin at 0."""
    known = [(x, mean) for x, group in zip(places, found, strict=True) if (mean := summary.mean_of(group))]
    if known:
        known.sort(key=lambda pair: pair[0])
        axes.errorbar(
            [x for x, _ in known],
            [m.mean for _, m in known],
            [m.error or 0.0 for _, m in known],
            label=label,
            color=colour,
            capsize=3,
            marker="o",
            linestyle="-" if joined else "none",
        )
    dots = [(x, number) for x, group in zip(places, found, strict=True) for _, number in group]
    axes.scatter([x for x, _ in dots], [y for _, y in dots], s=12, color=colour, zorder=3, edgecolors="black", lw=0.4)


def curves(jobs: Sequence[Job], key: str, path: Path) -> Path | None:
    """The jobs' validation losses over their steps, a colour for each value of a key. None: no job logged any."""
    values = summary.values(jobs, key)
    figure, panels = make_panels(len(CURVES))
    drawn = False
    for axes, column in zip(panels, CURVES, strict=True):
        labelled: set[str] = set()
        for job in jobs:
            value = job.overrides.get(key)
            steps, logged = history(job.folder, column)
            if not steps or value is None:
                continue
            label = None if value in labelled else to_label(f"{key}={value}")
            labelled.add(value)
            axes.plot(steps, logged, color=colour(values.index(value)), label=label, lw=1, marker=".", ms=3)
            drawn = True
        axes.set_title(column, fontsize=9)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if labelled:
            axes.legend(fontsize=7)
    return save_figure(figure, path) if drawn else None


def curves_of(run: Path, quantities: Sequence[str], path: Path) -> Path | None:
    """A run's own curves, a panel for each quantity, of training and validation. None: it logged none of them."""
    found = {name: {kind: history(run, f"{kind}/{name}") for kind in ("train", "val")} for name in quantities}
    shown = {name: kinds for name, kinds in found.items() if any(steps for steps, _ in kinds.values())}
    if not shown:
        return None
    figure, panels = make_panels(len(shown), 2)
    for axes, (name, kinds) in zip(panels, shown.items(), strict=True):
        for i, (kind, (steps, logged)) in enumerate(kinds.items()):
            if steps:
                axes.plot(steps, logged, color=colour(i), label=kind, lw=1, marker=".", ms=3)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return save_figure(figure, path)


def history(run: Path, column: str) -> tuple[list[int], list[float]]:
    """Steps and values of one column of a run's csv/metrics.csv; nothing where there is none, or it is no such file."""
    try:
        rows = list(csv.DictReader(io.StringIO(read(run, "csv/metrics.csv", MOST_LOG).replace("\0", ""))))
        pairs = [(int(row["step"]), float(row[column])) for row in rows if row.get(column) and row.get("step")]
    except (Unreadable, ValueError, csv.Error):
        return [], []
    finite = [(step, value) for step, value in pairs if math.isfinite(value) and step < 2**53]
    return [step for step, _ in finite], [value for _, value in finite]


def save_figure(figure: Figure, path: Path) -> Path:
    """Write it as a PNG."""
    FigureCanvasAgg(figure)
    write_whole(path, lambda file: figure.savefig(file, format="png"))
    return path
