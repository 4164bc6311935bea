"""Results as tables: one row a contender, the same columns in CSV (full precision) and Markdown (rounded)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.benchmarks.contenders import Result
from flowdiff.evaluation import tables

Cell = float | int | str | None


@dataclass(frozen=True)
class Column:
    """A column: its name in CSV, its heading in Markdown, where its value is, and how it is rounded."""

    name: str
    heading: str
    value: Callable[[Result], Cell]
    form: str = "{}"

    def text(self, result: Result) -> str:
        """The cell in Markdown; a dash where there is no value."""
        value = self.value(result)
        return "–" if value is None or value == "" else self.form.format(value)


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


def to_csv(columns: Sequence[Column], results: Sequence[Result]) -> str:
    """The table with full precision; an empty cell where there is no value."""
    return tables.to_csv([column.name for column in columns], [[c.value(r) for c in columns] for r in results])


def filled(columns: Sequence[Column], results: Sequence[Result]) -> list[Column]:
    """Those that are not empty."""
    return [c for c in columns if any(c.value(r) is not None for r in results)]


def to_markdown(columns: Sequence[Column], results: Sequence[Result]) -> str:
    """The table in Markdown, without the columns that are empty."""
    shown = filled(columns, results)
    return tables.to_markdown([c.heading for c in shown], [[c.text(r) for c in shown] for r in results])


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
    """What `contenders.machine` found, before each measurement, in words."""
    threads, cores, torch = (
        " or ".join(sorted({str(m[key]) for m in machines})) for key in ("threads", "cores", "torch")
    )
    load = max(m["load"] for m in machines)
    return f"threads: {threads}, cores: {cores}, load before it at most {load:g}, torch {torch}"


def ahead(results: Sequence[Result]) -> list[str]:
    """For each measure, the best of flowdiff's flows and the best of the others: who leads."""
    lines = []
    for what, column, given, lower in (
        ("bits/dim given the class", BITS, "yes", True),
        ("bits/dim without the class", BITS, "no", True),
        ("Fréchet distance", FD, None, True),
        ("recognised share", RECOGNISED, None, False),
        # without the class the Wiener filter that D is compared with doesn't know it either
        *((f"denoising error at σ = {column.name.split('_')[1]}", column, "yes", True) for column in DENOISING),
    ):
        fit = [r for r in results if column.value(r) is not None and given in (None, given_class(r))]
        ours = sorted((r for r in fit if r["request"]["kind"] == "flowdiff"), key=number(column), reverse=not lower)
        others = sorted((r for r in fit if r["request"]["kind"] != "flowdiff"), key=number(column), reverse=not lower)
        if ours and others:
            a, b = number(column)(ours[0]), number(column)(others[0])
            verdict = "equal" if a == b else "flowdiff leads" if (a < b) == lower else "**flowdiff loses**"
            names = [f"{r['request']['name']} {column.text(r)}" for r in (ours[0], others[0])]
            lines.append(f"* {what}: {verdict}, {names[0]} to {names[1]}.")
    return lines


def number(column: Column) -> Callable[[Result], float]:
    """The column's value, where there is one."""
    return lambda result: float(column.value(result) or 0.0)
