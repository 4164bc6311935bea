"""The benchmark as a picture: bits/dim, Fréchet distance and recognised share, a bar for each contender."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common.columns import BITS, FD, FD_REAL, RECOGNISED, Column, conditions, metric
from experiments.common.results import Result
from flowdiff.reports.figures import save_figure

COLOURS = {"flowdiff": "#2a6f97", "baseline": "#6c757d", "peer": "#e07a5f"}


def plot(results: Sequence[Result], path: Path) -> None:
    """Write the picture of one dataset's results; those without a number have a dash in place of the bar."""
    height = 1.8 + 0.36 * len(results)
    figure = Figure(figsize=(12, height), dpi=110, layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    bars(axes[0], results, BITS, "bits/dim (less is better)")
    bars(axes[1], results, FD, "Fréchet distance (less is better)")
    bars(axes[2], results, RECOGNISED, "recognised share (more is better)")
    real = [metric(r, "recognised/real") for r in results]
    for panel, values in ((axes[1], [FD_REAL.value(r) for r in results]), (axes[2], real)):
        known = [value for value in values if isinstance(value, float)]
        if known:
            panel.axvline(known[0], color="black", linestyle=":", linewidth=1)
    axes[0].set_yticks(range(len(results)), [r["request"]["name"] for r in results])
    axes[0].invert_yaxis()
    dataset = results[0]["request"]["dataset"]
    key = "blue: flowdiff, gray: no flow, orange: other libraries; pale: without the class; dotted: real images"
    figure.suptitle(f"{dataset}: {conditions(results)}\n{key}", fontsize=9)
    save_figure(figure, path)


def bars(axes: Axes, results: Sequence[Result], column: Column, title: str) -> None:
    """One panel, on a logarithmic axis where the largest value is twenty times the smallest."""
    values = [column.value(r) for r in results]
    known = [value for value in values if isinstance(value, float)]
    log = bool(known) and min(known) > 0 and max(known) > 20 * min(known)
    axes.set_title(title, fontsize=10)
    if log:
        axes.set_xscale("log")
    start = min(known) / 2 if log else 0.0
    end = max(known, default=1.0)
    axes.set_xlim(start, end * (3 if log else 1.25))
    for row, (result, value) in enumerate(zip(results, values, strict=True)):
        if isinstance(value, float):
            pale = result.get("given_class") is False
            colour = COLOURS[result["request"]["kind"]]
            axes.barh(row, value - start, left=start, color=colour, alpha=0.45 if pale else 1.0, height=0.7)
        at = value if isinstance(value, float) else start
        text = "failed" if result["error"] else column.text(result)
        axes.annotate(text, (at, row), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8)
