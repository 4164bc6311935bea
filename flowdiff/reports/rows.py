"""The jobs of a sweep as rows of a table."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowdiff.errors import ConfigError
from flowdiff.runs.job_folders import Job


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


def swept_keys(jobs: Sequence[Job]) -> list[str]:
    """The keys that are not the same in all jobs; those of the only job if there is one."""
    keys = list(dict.fromkeys(key for job in jobs for key in job.overrides))
    if len(jobs) == 1:
        return keys
    return [key for key in keys if len({job.overrides.get(key) for job in jobs}) > 1]


def count_jobs(jobs: Sequence[Job]) -> str:
    """How many jobs there are, and in which states."""
    states = [job.status for job in jobs]
    return f"{len(jobs)} jobs: " + ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def name_job(job: Job, root: Path) -> str:
    """Its folder in that of the sweep."""
    name = os.path.relpath(job.folder, root)
    return root.name if name == "." else name


def rows(jobs: Sequence[Job], root: Path) -> tuple[list[str], list[list[Any]]]:
    """The names of the columns and a row of values for each job; None where there is no value."""
    keys = swept_keys(jobs)
    metrics = list(dict.fromkeys(name for job in jobs for name in job.metrics))
    header = ["job", *keys, *metrics, "status", "seconds", "error"]
    table = []
    for job in jobs:
        cells: list[Any] = [name_job(job, root)]
        cells += [job.overrides.get(key) for key in keys]
        cells += [job.metrics.get(metric) for metric in metrics]
        table.append([*cells, job.status, job.seconds, job.error or None])
    return header, table
