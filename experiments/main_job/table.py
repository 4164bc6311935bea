"""The table of the records, from the JSON files in results/.   python -m experiments.main_job.table [--write]

A file DATA-MODEL-SEED.json is one run: `words` of its command, `training_seconds` and `training_steps` of one thread,
and `metrics`, its metrics.json. A row has the mean of the seeds and, where there are several, half of what lies between
the least and the largest. `--write` puts it into `PAGES`, between two comments.
"""

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean

from experiments.common.columns import Cell, Column, Row, distance, metric, to_markdown

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).resolve().parents[2]
SIGMAS = ("0.05", "0.1", "0.2", "0.5", "1", "2", "5")
Measure = Callable[[Row], float | None]


def spread(of_run: Measure, digits: int) -> Callable[[Row], Cell]:
    """A row's cell: what `of_run` says of its runs, to so many significant digits; None where it says nothing."""

    def text(row: Row) -> Cell:
        values = [value for run in row["runs"] if (value := of_run(run)) is not None]
        if not values:
            return None
        half = (max(values) - min(values)) / 2
        beside = f" ± {float(f'{half:.1g}'):g}" if len(values) > 1 else ""
        return f"{mean(values):#.{digits}g}".removesuffix(".") + beside

    return text


def value_of(key: str) -> Measure:
    """A metric of a run."""
    return lambda run: metric(run, key)


def recognised(run: Row) -> float | None:
    """In per cent."""
    share = metric(run, "recognised")
    return None if share is None else 100 * share


def samples_per_second(run: Row) -> float | None:
    """By the run's own sampler."""
    seconds = metric(run, "seconds_per_100")
    return None if seconds is None else 100 / seconds


def minutes(run: Row) -> float | None:
    """Of training, on one thread."""
    seconds = run.get("training_seconds")
    return None if seconds is None else seconds / 60


def real_distance(row: Row) -> Cell:
    """FD of as many real images."""
    return spread(lambda run: metric(run, f"{distance(run)}/real"), 3)(row)


def sampler(row: Row) -> Cell:
    """How the samples were made."""
    run = row["runs"][0]
    fd = distance(run)
    return f"{metric(run, fd, 'sampler')}, {metric(run, fd, 'nfe'):g}; {metric(run, fd, 'n'):,}" if fd else None


COLUMNS: Sequence[Column] = (
    Column("data", "data", lambda row: row["data"]),
    Column("model", "model", lambda row: row["model"]),
    Column("seeds", "seeds", lambda row: len(row["runs"])),
    Column("bits_per_dim", "bits/dim", spread(value_of("bits_per_dim"), 4)),
    *(Column(f"D_{s}", f"D, σ = {s}", spread(value_of(f"denoising_ratio/{s}"), 3)) for s in SIGMAS),
    Column("fd", "FD", spread(lambda run: metric(run, distance(run)), 3)),
    Column("fd_real", "real", real_distance),
    Column("recognised", "recognised, %", spread(recognised, 3)),
    Column("sampler", "sampler, evaluations; n", sampler),
    Column("samples_per_second", "samples/s", spread(samples_per_second, 2)),
    Column("training_minutes", "training, min", spread(minutes, 2)),
    Column("steps", "steps", lambda row: row["runs"][0].get("training_steps")),
)

FEW = ("data", "model", "bits_per_dim", "D_0.2", "D_1", "fd", "fd_real", "recognised", "sampler", "training_minutes")
#: Where the table stands, and with which columns.
PAGES: Mapping[str, Sequence[Column]] = {
    "README.md": [column for column in COLUMNS if column.name in FEW],
    "README.zh.md": [column for column in COLUMNS if column.name in FEW],
    "docs/results.md": COLUMNS,
    "experiments/main_job/README.md": COLUMNS,
}


def fill(page: str, columns: Sequence[Column]) -> str:
    """A page with today's table between its two comments."""
    table = to_markdown(columns, rows())
    return re.sub(r"(<!-- main job -->\n).*?(<!-- /main job -->)", lambda m: m[1] + table + m[2], page, flags=re.S)


def rows(results: Path = RESULTS) -> list[Row]:
    """A row for each data set and model that is recorded."""
    found: dict[tuple[str, str], list[Row]] = {}
    for file in sorted(results.glob("*-*-*.json")):
        data, model, _ = file.stem.split("-")
        found.setdefault((data, model), []).append(json.loads(file.read_text()))
    return [{"data": data, "model": model, "runs": runs} for (data, model), runs in found.items()]


if __name__ == "__main__":
    print(to_markdown(COLUMNS, rows()), end="")
    for name, columns in PAGES.items() if "--write" in sys.argv else ():
        (ROOT / name).write_text(fill((ROOT / name).read_text(encoding="utf-8"), columns), encoding="utf-8")
