"""Plots of a sweep: a metric against each studied key, the seeds as points, and the curves of training."""

import csv
from collections.abc import Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from flowdiff.collect import Job
from flowdiff.files import write_whole
from flowdiff.report import summary

#: What is plotted, as far as it was measured: the start of the metrics' names.
PLOTTED = ("bits_per_dim", "fd_", "fid", "recognised", "denoising_ratio/0.2", "denoising_rmse/0.2", "log_prob")
CURVES = ("train/loss", "val/loss", "val/bits_per_dim")


def plotted(jobs: Sequence[Job]) -> list[str]:
    """The metrics that are plotted: the first of each kind of `PLOTTED`."""
    measured = summary.metrics(jobs)
    firsts = (next((name for name in measured if name.startswith(kind)), None) for kind in PLOTTED)
    return [name for name in firsts if name is not None]


def numeric(values: Sequence[str]) -> list[float] | None:
    """The values as numbers, None if one of them is none."""
    try:
        return [float(value) for value in values]
    except ValueError:
        return None


def against(jobs: Sequence[Job], key: str, line: str | None, path: Path) -> Path | None:
    """Plot the metrics against the values of a key: lines for numbers, bars for names. None: nothing was measured.

    Args:
        jobs: of the sweep.
        key: on the horizontal axis.
        line: a second key, with a line (or a group of bars) for each of its values; None: all jobs together.
        path: of the PNG.
    """
    shown = plotted(jobs)
    if not shown:
        return None
    values = summary.values(jobs, key)
    places = numeric(values)
    figure = Figure(figsize=(4.2 * len(shown), 3.6), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    groups = [None] if line is None else summary.values(jobs, line)
    for axes, metric in zip(panels, shown, strict=True):
        low, high = span(jobs, metric)
        for i, group in enumerate(groups):
            mine = [job for job in jobs if line is None or job.overrides.get(line) == group]
            found = [summary.numbers(mine, key, value, metric) for value in values]
            label, colour = None if group is None else f"{line}={group}", colormaps["tab10"](i % 10)
            if places is None:
                width = 0.8 / len(groups)
                middle = [n + (i - (len(groups) - 1) / 2) * width for n in range(len(values))]
                bars(axes, middle, found, low, width, label, colour)
            else:
                lines(axes, places, found, label, colour, joined=summary.few(jobs, key))
        axes.set_title(metric + (" (more is better)" if summary.more_is_better(metric) else ""), fontsize=9)
        axes.set_xlabel(key)
        if places is None:
            axes.set_xticks(range(len(values)), values, rotation=30, ha="right", fontsize=8)
            axes.set_ylim(low, high)
            axes.set_xlim(-0.6, len(values) - 0.4)
        else:
            if min(places) > 0 and max(places) >= 8 * min(places):
                axes.set_xscale("log")
            if summary.few(jobs, key):
                axes.set_xticks(places, values)
                axes.minorticks_off()
        axes.grid(alpha=0.3)
    if line is not None:
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", fontsize=7)
    return saved(figure, path)


Colour = tuple[float, float, float, float]


def lines(
    axes: Axes,
    places: Sequence[float],
    found: Sequence[list[float]],
    label: str | None,
    colour: Colour,
    joined: bool,
) -> None:
    """Means with their standard errors, joined or not; each job a point."""
    known = [(x, mean) for x, group in zip(places, found, strict=True) if (mean := summary.mean_of(group))]
    if known:
        known.sort(key=lambda pair: pair[0])
        errors = [mean.error or 0.0 for _, mean in known]
        axes.errorbar(
            [x for x, _ in known],
            [m.mean for _, m in known],
            errors,
            label=label,
            color=colour,
            capsize=3,
            marker="o",
            linestyle="-" if joined else "none",
        )
    points(axes, places, found, colour)


def span(jobs: Sequence[Job], metric: str) -> tuple[float, float]:
    """Where an axis begins and ends: around the numbers, not at 0, so that differences between bars are seen."""
    everything = [number for job in jobs if (number := job.metrics.get(metric)) is not None]
    margin = 0.15 * (max(everything) - min(everything)) or 0.05 * abs(everything[0]) or 1.0
    return min(everything) - 2 * margin, max(everything) + margin


def bars(
    axes: Axes,
    places: Sequence[float],
    found: Sequence[list[float]],
    bottom: float,
    width: float,
    label: str | None,
    colour: Colour,
) -> None:
    """A bar from ``bottom`` to each mean, each job a point."""
    means = [(x, mean.mean) for x, group in zip(places, found, strict=True) if (mean := summary.mean_of(group))]
    axes.bar([x for x, _ in means], [m - bottom for _, m in means], width, bottom, color=colour, alpha=0.5, label=label)
    points(axes, places, found, colour)


def points(axes: Axes, places: Sequence[float], found: Sequence[list[float]], colour: Colour) -> None:
    """A dot for each job."""
    pairs = [(x, number) for x, group in zip(places, found, strict=True) for number in group]
    axes.scatter([x for x, _ in pairs], [y for _, y in pairs], s=12, color=colour, zorder=3, edgecolors="black", lw=0.4)


def curves(jobs: Sequence[Job], key: str, path: Path) -> Path | None:
    """The jobs' validation losses over their steps, a colour for each value of a key. None: no job logged any."""
    values = summary.values(jobs, key)
    figure = Figure(figsize=(4.2 * len(CURVES), 3.6), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(CURVES), squeeze=False)[0]
    drawn = False
    for axes, column in zip(panels, CURVES, strict=True):
        labelled: set[str] = set()
        for job in jobs:
            value = job.overrides.get(key)
            steps, logged = history(job.folder / "csv" / "metrics.csv", column)
            if not steps or value is None:
                continue
            label = None if value in labelled else f"{key}={value}"
            labelled.add(value)
            axes.plot(
                steps, logged, color=colormaps["tab10"](values.index(value) % 10), label=label, lw=1, marker=".", ms=3
            )
            drawn = True
        axes.set_title(column, fontsize=9)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if labelled:
            axes.legend(fontsize=7)
    return saved(figure, path) if drawn else None


def history(file: Path, column: str) -> tuple[list[int], list[float]]:
    """Steps and values of one column of a run's metrics.csv; nothing where there is none."""
    if not file.is_file():
        return [], []
    with file.open(newline="") as content:
        rows = [row for row in csv.DictReader(content) if row.get(column) and row.get("step")]
    return [int(row["step"]) for row in rows], [float(row[column]) for row in rows]


def saved(figure: Figure, path: Path) -> Path:
    """Write it as a PNG."""
    FigureCanvasAgg(figure)
    write_whole(path, lambda file: figure.savefig(file, format="png"))
    return path
