"""A sweep's report.   python -m flowdiff.collect multirun/digits/2026-01-31/12-00-00.000000

Every folder below the given one that holds ``status.json`` or ``.hydra/overrides.yaml`` is a job. Written to its
``report/`` (or --output): results.csv, a row a job; summary.md, means over seeds and paired differences for each
swept key, with plots and a grid of samples for each value; index.html, all of it in one file. Jobs that still run,
failed or were killed are rows like the others, so it can be called at any time.
"""

import argparse
import csv
import io
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from rich.console import Console
from rich.table import Table

from flowdiff.errors import ConfigError, FlowdiffError, at_least
from flowdiff.files import made, write_text
from flowdiff.paths import read_json, read_yaml


@dataclass
class Job:
    """One run of a sweep, as far as it has come."""

    folder: Path
    words: list[str] = field(default_factory=list)
    overrides: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float | None] = field(default_factory=dict)
    conditions: dict[str, dict[str, Any]] = field(default_factory=dict)  # of each metric
    status: str = "not started"
    error: str = ""
    seconds: float | None = None


def collect(root: Path) -> list[Job]:
    """All jobs below ``root``, in the order of their numbers or names.

    Raises:
        FlowdiffError: there is no such folder, or no job in it.
    """
    if not root.is_dir():
        raise FlowdiffError(f"{root}: no such folder; give a sweep's, as multirun/<experiment>/<date>/<time>")
    marks = [*root.rglob("status.json"), *(p.parent for p in root.rglob(".hydra/overrides.yaml"))]
    inner = (mark.parent for mark in marks if "evaluate" not in mark.relative_to(root).parts)  # of these runs
    folders = sorted(set(inner), key=_by_number)
    if not folders:
        raise FlowdiffError(f"{root}: no job in it has begun (no status.json, no .hydra/overrides.yaml)")
    jobs = [read_job(folder) for folder in folders]
    compare_by_rmse(jobs)
    return jobs


def read_job(folder: Path) -> Job:
    """What a job's folder tells; files that are missing or half written tell nothing."""
    job = Job(folder)
    status = _json(folder / "status.json")
    words = status.get("overrides")
    file = folder / ".hydra" / "overrides.yaml"
    if not isinstance(words, list) and file.is_file():
        try:
            words = read_yaml(file)
        except FlowdiffError:  # half written
            words = []
    job.words = [str(word) for word in words] if isinstance(words, list) else []
    job.overrides = trained_with(job.words) | dict(_key_and_value(word) for word in job.words)
    job.status = str(status.get("status", job.status))
    job.error = " ".join(str(status.get("error") or "").split())
    if isinstance(status.get("seconds"), int | float):
        job.seconds = float(status["seconds"])
    if job.status == "running":
        job.seconds = _since(status.get("started"), job.seconds)
    if job.status == "running" and _is_gone(status):
        job.seconds = None
        job.status, job.error = "killed", "its process is gone and it has not said why"
    for name, entry in _json(folder / "metrics.json").items():
        if isinstance(entry, dict) and isinstance(entry.get("value"), int | float | None):
            job.metrics[name], job.conditions[name] = entry.get("value"), entry
    return job


def compare_by_rmse(jobs: Sequence[Job]) -> None:
    """Put the RMSE, ``denoising_rmse/σ``, in the place of its ratio to a Wiener filter where that filter isn't the same
    for all jobs: without the class (``conditioning=none``) it is a worse one, and the ratio to it flatters."""
    filters = {conditions.get("filter") for job in jobs for conditions in job.conditions.values()}
    if len(filters - {None}) < 2:
        return
    for job in jobs:
        for name in [name for name in job.metrics if "rmse" in job.conditions[name]]:
            del job.metrics[name]
            job.metrics[name.replace("_ratio/", "_rmse/")] = job.conditions[name]["rmse"]


def keep_metrics(jobs: Sequence[Job], beginnings: Sequence[str]) -> None:
    """Drop the metrics whose names begin with none of these.

    Raises:
        ConfigError: nothing was measured whose name begins so.
    """
    measured = {name for job in jobs for name in job.metrics}
    for beginning in beginnings:
        if not any(name.startswith(beginning) for name in measured):
            raise ConfigError("--metrics", beginning, f"measured were {', '.join(sorted(measured)) or 'none'}")
    for job in jobs:
        job.metrics = {name: job.metrics[name] for name in job.metrics if name.startswith(tuple(beginnings))}


def trained_with(words: Sequence[str]) -> dict[str, str]:
    """What the run of an evaluated checkpoint was told, so that evaluations can be told apart by it."""
    paths = [Path(value.strip("'\"")) for key, value in map(_key_and_value, words) if key == "ckpt_path"]
    if not paths or paths[-1].parent.name != "checkpoints":
        return {}
    run = _json(paths[-1].parent.parent / "status.json").get("overrides")
    return dict(_key_and_value(str(word)) for word in run) if isinstance(run, list) else {}


def swept_keys(jobs: Sequence[Job]) -> list[str]:
    """The keys that are not the same in all jobs; those of the only job if there is one."""
    keys = list(dict.fromkeys(key for job in jobs for key in job.overrides))
    if len(jobs) == 1:
        return keys
    return [key for key in keys if len({job.overrides.get(key) for job in jobs}) > 1]


def counted(jobs: Sequence[Job]) -> str:
    """How many jobs there are, and in which states."""
    states = [job.status for job in jobs]
    return f"{len(jobs)} jobs: " + ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def rows(jobs: Sequence[Job], root: Path) -> tuple[list[str], list[list[Any]]]:
    """The names of the columns and a row of values for each job; None where there is no value."""
    keys = swept_keys(jobs)
    metrics = list(dict.fromkeys(name for job in jobs for name in job.metrics))
    header = ["job", *keys, *metrics, "status", "seconds", "error"]
    table = []
    for job in jobs:
        name = os.path.relpath(job.folder, root)
        cells: list[Any] = [root.name if name == "." else name]
        cells += [job.overrides.get(key) for key in keys]
        cells += [job.metrics.get(metric) for metric in metrics]
        table.append([*cells, job.status, job.seconds, job.error or None])
    return header, table


def to_csv(header: Sequence[str], table: Iterable[Sequence[Any]]) -> str:
    """The table with full precision; an empty cell where there is no value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([["" if cell is None else cell for cell in row] for row in table])
    return text.getvalue()


def to_markdown(header: Sequence[str], table: Iterable[Sequence[Any]]) -> str:
    """The table in Markdown, four digits a number."""
    lines = [header, ["---"] * len(header), *([short(cell) for cell in row] for row in table)]
    return "".join("| " + " | ".join(str(c).replace("|", "\\|") for c in line) + " |\n" for line in lines)


def main(words: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m flowdiff.collect",
        description="The report of a sweep, finished or not: results.csv, summary.md, index.html, plots, samples.",
    )
    parser.add_argument("folder", type=Path, help="a sweep's folder: multirun/<experiment>/<date>/<time>")
    parser.add_argument("-o", "--output", type=Path, help="where the report goes (default: FOLDER/report)")
    parser.add_argument(
        "--baseline",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="what a swept key's values are compared with (default: its first value); may be given for several keys",
    )
    parser.add_argument(
        "--metrics",
        metavar="NAME,NAME",
        help="those that the page shows, by the beginning of their names (default: all)",
    )
    parser.add_argument("--samples", type=int, default=20, help="images drawn for each value of a key; 0: none")
    given = parser.parse_args(words)
    from flowdiff.report import page, summary  # they read this module

    try:
        at_least("--samples", given.samples, 0)
        jobs = collect(given.folder)
        header, table = rows(jobs, given.folder)
        if given.metrics:
            keep_metrics(jobs, given.metrics.split(","))
        baselines = summary.baselines(jobs, given.baseline)
        output = made(given.output or given.folder / "report", "--output")
        write_text(output / "results.csv", to_csv(header, table))
        page.write(jobs, given.folder, baselines, given.samples, output)
    except FlowdiffError as error:
        print(error, file=sys.stderr)
        return 1
    _print(header, table)
    print(counted(jobs))
    print(f"report: {output / 'index.html'}, {output / 'summary.md'}, {output / 'results.csv'}")
    return 0


def _print(header: Sequence[str], table: Iterable[Sequence[Any]]) -> None:
    shown = Table()
    for name in header:
        shown.add_column(name, overflow="fold")
    for row in table:
        shown.add_row(*(short(cell) for cell in row))
    console = Console()
    width = console.width if console.is_terminal else max(console.width, 40 + 14 * len(header))
    Console(width=width).print(shown, markup=False)


def short(cell: Any) -> str:
    """A cell of a table: four digits a number, nothing where there is no value."""
    if cell is None:
        return ""
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except FlowdiffError:
        return {}
    return found if isinstance(found, dict) else {}


def _key_and_value(word: str) -> tuple[str, str]:
    """``flow.n_flows=3`` is ("flow.n_flows", "3"); a word that Hydra can't read stands for itself."""
    try:
        parsed = OverridesParser.create().parse_override(word)
    except Exception:
        return word.partition("=")[0], word.partition("=")[2]
    return parsed.key_or_group, "(deleted)" if parsed.is_delete() else word.partition("=")[2]


def _is_gone(status: dict[str, Any]) -> bool:
    """Whether the process of a running job on this machine has ended. False where that can't be known."""
    host, pid = status.get("host"), status.get("pid")
    if host != platform.node() or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _since(started: Any, otherwise: float | None) -> float | None:
    """Seconds from an ISO time until now."""
    try:
        return round((datetime.now().astimezone() - datetime.fromisoformat(str(started))).total_seconds(), 1)
    except (ValueError, TypeError):
        return otherwise


def _by_number(folder: Path) -> tuple[Any, ...]:
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in folder.parts)


if __name__ == "__main__":
    sys.exit(main())
