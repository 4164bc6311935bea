"""Columns of tables, the same in CSV (full precision) and where people read them (rounded); those of results."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.common.results import Result
from flowdiff.evaluation import tables

Cell = float | int | str | None
Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A column: its name in CSV, its heading in Markdown, where its value is, and how it is rounded."""

    name: str
    heading: str
    value: Callable[[Row], Cell]
    form: str = "{}"

    def text(self, row: Row) -> str:
        """The rounded cell; a dash where there is no value."""
        value = self.value(row)
        return "–" if value is None or value == "" else self.form.format(value)


def drop_empty(columns: Sequence[Column], rows: Sequence[Row]) -> list[Column]:
    """Those that have a value somewhere."""
    return [c for c in columns if any(c.value(row) is not None for row in rows)]


def to_csv(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """The table with full precision; an empty cell where there is no value."""
    return tables.to_csv([c.name for c in columns], [[c.value(row) for c in columns] for row in rows])


def to_markdown(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """The table in Markdown, without the columns that are empty."""
    return tables.to_markdown(*rounded(columns, rows))


def rounded(columns: Sequence[Column], rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells as people read them, without the columns that are empty."""
    shown = drop_empty(columns, rows)
    return [c.heading for c in shown], [[c.text(row) for c in shown] for row in rows]


def metric(result: Result, key: str, what: str = "value") -> Any:
    """An entry of the metrics, None where it was not measured."""
    return (result.get("metrics") or {}).get(key, {}).get(what)


def distance(result: Result) -> str:
    """The key of the Fréchet distance, which names its extractor."""
    keys = (key for key in result.get("metrics") or {} if key.startswith("fd_") and not key.endswith("/real"))
    return next(keys, "")


def given_class(result: Result) -> str | None:
    """Whether likelihood and samples are given the class."""
    known = result.get("given_class")
    return None if known is None else "yes" if known else "no"


def rate(result: Result) -> float | None:
    """Training steps a second."""
    return result["steps"] / result["seconds"] if result.get("steps") and result.get("seconds") else None


def denoising(sigma: str) -> Column:
    """RMSE of D over the Wiener filter's."""
    key = f"denoising_ratio/{sigma}"
    return Column(f"denoising_{sigma}", f"D, σ = {sigma}", lambda r: metric(r, key), "{:.3f}")


NAME = Column("model", "model", lambda r: r["request"]["name"])
GIVEN = Column("given_class", "given class", given_class)
BITS = Column("bits_per_dim", "bits/dim", lambda r: metric(r, "bits_per_dim"), "{:.3f}")
BITS_ERROR = Column("bits_per_dim_error", "±", lambda r: metric(r, "bits_per_dim", "standard_error"), "{:.3f}")
FD = Column("fd", "FD", lambda r: metric(r, distance(r)), "{:.3g}")
FD_REAL = Column("fd_real", "real", lambda r: metric(r, f"{distance(r)}/real"), "{:.3g}")
RECOGNISED = Column("recognised", "recognised", lambda r: metric(r, "recognised"), "{:.1%}")
DENOISING = [denoising(sigma) for sigma in ("0.2", "1", "5")]
PARAMETERS = Column("parameters", "parameters", lambda r: r.get("parameters"), "{:,}")
SECONDS = Column("seconds", "seconds", lambda r: r.get("seconds"), "{:.0f}")
STEPS = Column("steps", "steps", lambda r: r.get("steps"), "{:,}")
RATE = Column("steps_per_second", "steps/s", rate, "{:.1f}")
SPEED = Column("images_per_second", "images/s", lambda r: r.get("images_per_second"), "{:,.0f}")
SAMPLER = Column("sampler", "sampler", lambda r: metric(r, distance(r), "sampler"))
NFE = Column("nfe", "NFE", lambda r: metric(r, distance(r), "nfe"), "{:g}")
SAMPLING = Column("seconds_per_100", "s per 100", lambda r: r.get("seconds_per_100"), "{:.2g}")
INVERSION = Column(
    "inversion_seconds_per_100", "s per 100, inversion", lambda r: r.get("inversion_seconds_per_100"), "{:.2g}"
)
ERROR = Column("error", "error", lambda r: r.get("error"))
NOTE = Column("note", "note", lambda r: r.get("note"))


def conditions(results: Sequence[Result]) -> str:
    """One line on what the numbers depend on: budget, seed, machine, samples, extractor."""
    request = results[0]["request"]
    done = next((r for r in results if distance(r)), None)
    samples = "" if done is None else f"; FD is `{distance(done)}` of {metric(done, distance(done), 'n'):,} samples"
    return (
        f"A budget of {request['seconds']:g} seconds of training each (evaluation not counted), "
        f"{seconds_words(results)}seed {request['seed']}, "
        f"{machine_words([r['machine'] for r in results])}{samples}."
    )


def seconds_words(results: Sequence[Result]) -> str:
    """The seconds that the trainings then took."""
    taken = [result["seconds"] for result in results if result.get("seconds")]
    return f"of which they took {min(taken):.0f} to {max(taken):.0f}, " if taken else ""


def machine_words(machines: Sequence[Result]) -> str:
    """What `results.describe_machine` said, before each measurement, in words."""
    threads, cores, torch = (
        " or ".join(sorted({str(m[key]) for m in machines})) for key in ("threads", "cores", "torch")
    )
    load = max(m["load"] for m in machines)
    return f"threads: {threads}, cores: {cores}, load before it at most {load:g}, torch {torch}"
