"""The jobs of a sweep, as their folders tell of them."""

import functools
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from flowdiff.errors import FlowdiffError, one_line
from flowdiff.files import Unreadable
from flowdiff.quantities import Better, Quantity, from_entries
from flowdiff.runs.run_files import read, read_json
from flowdiff.runs.words import read_word

MOST = 300  # words, and metrics, of one job that are read

WORD = 2000  # characters of a word that are parsed
SHOWN = 300  # of one that is not


@dataclass
class Job:
    """One run of a sweep, as far as it has come.

    Attributes:
        folder: of the run.
        words, overrides: of its command line; with those of the run whose checkpoint it was made from.
        trained: the latter alone; None: it has its own weights.
        metrics, conditions: values and entries of metrics.json, by name.
        status, error, seconds: of status.json; `error` also says which of its files could not be read.
    """

    folder: Path
    words: list[str] = field(default_factory=list)
    overrides: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float | None] = field(default_factory=dict)
    conditions: dict[str, dict[str, Any]] = field(default_factory=dict)
    status: str = "not started"
    error: str = ""
    seconds: float | None = None
    trained: dict[str, str] | None = None

    @functools.cached_property
    def quantities(self) -> dict[str, Quantity]:
        """What its metrics are."""
        return from_entries({name: self.conditions.get(name, {}) for name in self.metrics}, _list_quantities)

    def take(self, entries: Mapping[str, Any]) -> None:
        """The entries of a metrics.json, which may hold anything."""
        for name, entry in list(entries.items())[:MOST]:
            if isinstance(entry, dict) and "value" in entry and (entry["value"] is None or _is_value(entry["value"])):
                name = one_line(name, 100)
                self.metrics[name], self.conditions[name] = _number(entry["value"]), entry

    def is_reference(self, metric: str) -> bool:
        """Whether it is of the data or of a reference, not of the model."""
        return metric in self.metrics and self.quantities[metric].reference

    @property
    def seed(self) -> str | None:
        """That of the weights: of the run itself, or of the one that its checkpoint is from; None: not given."""
        return (self.overrides if self.trained is None else self.trained).get("seed")


def collect(root: Path) -> list[Job]:
    """All jobs below `root`, in the order of their numbers or names.

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
    job, problems = Job(folder), list[str]()
    status = _json(folder, "status.json", problems)
    words = status.get("overrides")
    job.words = _words(words if isinstance(words, list) else _yaml(folder, ".hydra/overrides.yaml"))
    job.trained = read_training_words(job.words)
    job.overrides = (job.trained or {}) | settings(job.words)
    job.status = one_line(status.get("status") or job.status, 30)
    job.error = one_line(status.get("error") or "", WORD)
    job.seconds = _number(status.get("seconds"))
    if job.status == "running":
        job.seconds = _since(status.get("started"), job.seconds)
    if job.status == "running" and _is_gone(status):
        job.seconds = None
        job.status, job.error = "killed", "its process is gone and it has not said why"
    job.take(_json(folder, "metrics.json", problems))
    job.error = "; ".join(filter(None, [job.error, *problems]))
    return job


def compare_by_rmse(jobs: Sequence[Job]) -> None:
    """Put the RMSE, `denoising_rmse/σ`, in the place of its ratio to a Wiener filter where that filter isn't the same
    for all jobs: without the class (`conditioning=none`) it is a worse one, and the ratio to it flatters."""
    told = (conditions.get("filter") for job in jobs for conditions in job.conditions.values())
    if len({each for each in told if isinstance(each, str)}) < 2:
        return
    for job in jobs:
        for name in [name for name in job.metrics if "rmse" in job.conditions[name]]:
            entry = job.conditions.pop(name)
            del job.metrics[name]
            name = name.replace("_ratio/", "/").replace("/", "_rmse/", 1)
            rmse = entry["rmse"]
            job.metrics[name] = _number(rmse)
            job.conditions[name] = entry | {"value": rmse, "standard_error": None}


def read_training_words(words: Sequence[str]) -> dict[str, str] | None:
    """What the run of an evaluated checkpoint was told, so that evaluations can be told apart by it.

    Empty where that isn't known; None where no checkpoint is named.
    """
    paths = [Path(word.value.strip("'\"")) for word in map(read_word, words) if word.key == "ckpt_path"]
    if not paths or paths[-1] == Path("null"):
        return None
    if paths[-1].parent.name != "checkpoints":
        return {}
    return settings(_words(_json(paths[-1].parent.parent, "status.json", []).get("overrides")))


def settings(words: Iterable[str]) -> dict[str, str]:
    """What words of a command line say, by key, as it is shown."""
    read = map(read_word, words)
    return {one_line(w.key, SHOWN): "(deleted)" if w.is_deletion else one_line(w.value, SHOWN) for w in read}


def better(jobs: Sequence[Job], metric: str) -> Better | None:
    """Which way of a metric is better, as the jobs' files or the metric's class say; None where they don't agree."""
    said = {job.quantities[metric].better for job in jobs if metric in job.metrics}
    return said.pop() if len(said) == 1 else None


def _list_quantities() -> list[Quantity]:
    """What the metrics say of files from before the entries said it."""
    from flowdiff.metrics.base import list_quantities  # torch comes with it

    return list_quantities()


def _json(folder: Path, name: str, problems: list[str]) -> dict[str, Any]:
    """An object of JSON in a job's folder; empty where there is none. `problems` takes why it was not read."""
    try:
        found = read_json(folder, name)
    except Unreadable as error:
        problems.append(str(error))
        return {}
    return found if isinstance(found, dict) else {}


def _yaml(folder: Path, name: str) -> Any:
    """What Hydra has written there; None where there is nothing, or half of it."""
    try:
        return yaml.safe_load(read(folder, name, most=2**18))
    except (Unreadable, OSError, ValueError, RecursionError, yaml.YAMLError):
        return None


def _words(found: Any) -> list[str]:
    """The words of a command line, of a list that may hold anything."""
    listed = found if isinstance(found, list) else []
    return [str(word) for word in listed[:MOST] if isinstance(word, str | bool) or _is_value(word)]


def _is_value(found: Any) -> bool:
    return isinstance(found, int | float) and not isinstance(found, bool)


def _number(found: Any) -> float | None:
    """A finite number of at most a hundred digits; None for anything else. Whole ones stay whole."""
    return found if _is_value(found) and abs(found) < 1e100 and math.isfinite(found) else None


def _is_gone(status: dict[str, Any]) -> bool:
    """Whether the process of a running job on this machine has ended. False where that can't be known."""
    host, pid = status.get("host"), status.get("pid")
    if host != platform.node() or not isinstance(pid, int) or not 0 < pid < 2**31:
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
    except (ValueError, TypeError, OverflowError):
        return otherwise


def _by_number(folder: Path) -> tuple[Any, ...]:
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in folder.parts)
