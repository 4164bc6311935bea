"""Cost against size as a picture, on logarithmic axes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flowdiff.reports.figures import save_figure

Row = dict[str, Any]
COLOURS = {"coupling": "#2a6f97", "conv": "#e07a5f", "glow": "#81b29a", "U-Net": "#6c757d"}
#: Of each study: what stands below the axis, what is measured above and below, and their units.
PANELS = {
    "side": ("side of 8 colour images", "kept"),
    "n_flows": ("steps of the flow (128 digits)", "kept"),
    "batch": ("digits in a batch", "kept"),
    "samples": ("digits drawn, 20 ancestral steps", "peak"),
}
MEMORY = {"kept": "MB kept for the backward pass", "peak": "MB above what the process had"}


def plot(grown: Mapping[str, Sequence[Row]], path: Path) -> None:
    """CPU milliseconds above, memory below, a column of panels for each study."""
    figure = Figure(figsize=(14, 6.5), dpi=110, layout="constrained")
    panels = figure.subplots(2, len(PANELS))
    for i, (study, (label, memory)) in enumerate(PANELS.items()):
        lines(panels[0][i], grown[study], "seconds", 1e-3, "CPU ms")
        lines(panels[1][i], grown[study], memory, 1e6, MEMORY[memory])
        panels[1][i].set_xlabel(label)
        panels[0][i].set_title("a sampling" if study == "samples" else "a training step", fontsize=10)
        panels[0][i].legend(fontsize=8)
    figure.suptitle("dotted: proportional to the value below, to the number of pixels in the first column", fontsize=9)
    save_figure(figure, path)


def lines(axes: Axes, rows: Sequence[Row], key: str, unit: float, label: str) -> None:
    """One panel, a line for each model, and a dotted one that is proportional to the value."""
    axes.set_xscale("log", base=2 if rows[0]["study"] != "samples" else 10)
    axes.set_yscale("log")
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model and row[key] > 0]
        at, values = [row["at"] for row in mine], [row[key] / unit for row in mine]
        axes.plot(at, values, marker="o", markersize=4, color=COLOURS[model], label=model)
    places = sorted({row["at"] for row in rows})
    power = 2 if rows[0]["study"] == "side" else 1
    least = min(row[key] for row in rows if row["at"] == places[0] and row[key] > 0) / unit
    axes.plot(places, [least * (at / places[0]) ** power for at in places], color="black", linewidth=1, linestyle=":")
    axes.set_xticks(places, [f"{at:,}" for at in places])
    axes.minorticks_off()
    axes.set_ylabel(label, fontsize=9)
    axes.grid(alpha=0.3)
