"""What grows with what: cost of a step and of a sampling against size, one process against two.

    python -m experiments.scale [--studies side,n_flows,batch,samples,processes] [--rounds 3]

Written to results/: STUDY.json of each study, growth.md and growth.png of the first four, processes.md.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.common.columns import Column, to_markdown
from experiments.common.results import describe_machine
from experiments.common.spread import Spread
from experiments.scale import growth, plot, processes
from flowdiff.files import write_json, write_text

OUT = Path(__file__).with_name("results")
Row = dict[str, Any]


def in_units(key: str, unit: float, form: str) -> tuple[Any, str]:
    """The value of a key in some unit, and its form."""
    return (lambda row: row[key] / unit if row.get(key) is not None else None), form


COLUMNS = (
    Column("study", "varied", lambda row: row["study"]),
    Column("model", "model", lambda row: row["model"]),
    Column("at", "value", lambda row: row["at"], "{:,}"),
    Column("seconds", "CPU ms", *in_units("seconds", 1e-3, "{:,.1f}")),
    Column("each", "CPU ms an image", *in_units("each", 1e-3, "{:.3g}")),
    Column("kept", "MB kept", *in_units("kept", 1e6, "{:,.1f}")),
    Column("peak", "MB at the peak", *in_units("peak", 1e6, "{:,.0f}")),
    Column("calls", "ATen calls", lambda row: row.get("calls"), "{:,}"),
    Column("parameters", "parameters", lambda row: row.get("parameters"), "{:,}"),
)
PROCESSES = (
    Column("training", "training", lambda row: row["training"]),
    Column("batch", "images a step", lambda row: row["batch"], "{:,}"),
    Column("parameters", "parameters", lambda row: row["parameters"], "{:,}"),
    Column("bytes", "MB sent a step", *in_units("bytes", 1e6, "{:.2f}")),
    Column("buckets", "buckets", lambda row: row["buckets"], "{:g}"),
    Column("one", "images/s, one process", lambda row: Spread(*row["one"]).text()),
    Column("two", "images/s, two", lambda row: Spread(*row["two"]).text()),
    Column("ratio", "two over one", lambda row: Spread(*row["ratio"]).text("{:.2f}")),
    Column("cpu_ratio", "by CPU time", lambda row: Spread(*row["cpu_ratio"]).text("{:.2f}")),
    Column("own", "DDP's own share", lambda row: Spread(*row["own"]).text("{:.1%}")),
)


def read(study: str) -> list[Row]:
    """The recorded rows of a study; none if it was not measured."""
    file = OUT / f"{study}.json"
    return list(json.loads(file.read_text())["rows"]) if file.exists() else []


def report(folder: Path) -> None:
    """Write the tables and the picture of what is recorded."""
    grown = {study: read(study) for study in growth.STUDIES}
    if all(grown.values()):
        write_text(folder / "growth.md", to_markdown(COLUMNS, [row for rows in grown.values() for row in rows]))
        plot.plot(grown, folder / "growth.png")
    if compared := read("processes"):
        write_text(folder / "processes.md", to_markdown(PROCESSES, compared))


def main(words: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    everything = (*growth.STUDIES, "processes")
    parser = argparse.ArgumentParser("python -m experiments.scale", description=__doc__)
    parser.add_argument("--studies", default=",".join(everything), help="some of them (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="of each measurement; the least counts")
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    OUT.mkdir(exist_ok=True)
    for study in given.studies.split(","):
        machine, rows = describe_machine(), []
        measure = growth.STUDIES.get(study, processes.compare)
        columns = PROCESSES if study == "processes" else COLUMNS
        for row in measure(given.rounds):
            rows.append(row)
            print(to_markdown(columns, [row]).splitlines()[-1], flush=True)
            write_json(OUT / f"{study}.json", {"machine": machine, "rounds": given.rounds, "rows": rows})
    report(OUT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
