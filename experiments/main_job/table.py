"""The README's table from the recorded metrics.json files.   python -m experiments.main_job.table

Each file in results/ is the metrics.json of one run; its name is the row's.
"""

import json
from pathlib import Path

from experiments.common.columns import NAME, Column, Row, distance, metric, to_markdown

RESULTS = Path(__file__).parent / "results"
SIGMAS = ("0.05", "0.2", "1", "5")


def number(row: Row, key: str, form: str = "{:.3g}") -> str:
    """A metric as text; a dash where it was not measured."""
    value = metric(row, key)
    return "–" if value is None else form.format(value)


def how(row: Row) -> str | None:
    """How the samples were made."""
    fd = distance(row)
    return f"{metric(row, fd, 'sampler')}, NFE {metric(row, fd, 'nfe'):g}, n = {metric(row, fd, 'n'):,}" if fd else None


def distances(row: Row) -> str | None:
    """The Fréchet distance, and that of real images."""
    fd = distance(row)
    return f"{number(row, fd)} ({number(row, f'{fd}/real')})" if fd else None


def recognised(row: Row) -> str | None:
    """In per cent."""
    share = metric(row, "recognised")
    return None if share is None else f"{100 * share:.1f} %"


COLUMNS = (
    NAME,
    Column("bits_per_dim", "bits/dim", lambda row: metric(row, "bits_per_dim"), "{:.4g}"),
    Column("denoising", "D", lambda row: " / ".join(number(row, f"denoising_ratio/{sigma}") for sigma in SIGMAS)),
    Column("fd", "FD (real)", distances),
    Column("recognised", "recognised", recognised),
    Column("samples", "samples", how),
)


def rows() -> list[Row]:
    """The recorded runs that have a density or samples."""
    found = [(file.stem.replace("_", " "), json.loads(file.read_text())) for file in sorted(RESULTS.glob("*.json"))]
    return [
        {"request": {"name": name}, "metrics": entries}
        for name, entries in found
        if {"bits_per_dim", "recognised"} & entries.keys()
    ]


if __name__ == "__main__":
    print(to_markdown(COLUMNS, rows()), end="")
