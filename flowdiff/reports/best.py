"""Which job of a sweep is the best by a metric, and the command that samples from it."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from flowdiff.errors import ConfigError, one_line
from flowdiff.model.requests import DrawRequest
from flowdiff.reports.rows import name_job, swept_keys
from flowdiff.reports.samples import find_checkpoint
from flowdiff.runs.job_folders import Job, better
from flowdiff.runs.words import command, override, read_word

#: Of an evaluation's words those that say how it sampled, which `flowdiff.sample` takes as well.
SHARED = {field.name for field in fields(DrawRequest)} - {"output_dir"}
PLAIN = re.compile(r"[\w.+]+=[\w.+-]+")


@dataclass(frozen=True)
class Best:
    """The job whose value of a metric is the best.

    Attributes:
        sentence: which one, by what, how good, and what it was told.
        command: draws samples from its checkpoint; None: it has none.
    """

    sentence: str
    command: str | None


def find_best(jobs: Sequence[Job], root: Path, metric: str | None) -> Best | None:
    """The best of the jobs in the folder `root`; None: no metric that says which way is better was measured.

    Args:
        jobs: of a sweep.
        root: its folder.
        metric: as it is called in metrics.json; None: the first that says which way is better.

    Raises:
        ConfigError: `metric` was not measured, or doesn't say which way is better.
    """
    names = list(dict.fromkeys(name for job in jobs for name, value in job.metrics.items() if value is not None))
    known = [name for name in names if better(jobs, name) and not any(job.is_reference(name) for job in jobs)]
    if metric is not None and metric not in known:
        raise ConfigError("--best", metric, f"must be one of {', '.join(known) or 'none, as nothing was measured'}")
    if not known:
        return None
    metric = metric or known[0]
    direction = better(jobs, metric)
    sign = 1.0 if direction == "lower" else -1.0
    value, job = min(
        ((value, job) for job in jobs if (value := job.metrics.get(metric)) is not None),
        key=lambda found: sign * found[0],
    )
    told = " ".join(f"{key}={job.overrides[key]}" for key in swept_keys(jobs) if key in job.overrides)
    sentence = f"best by {metric} ({direction} is better): {value:.4g}, job {name_job(job, root)}"
    return Best(one_line(f"{sentence}: {told}" if told else sentence), _sample(job))


def _sample(job: Job) -> str | None:
    """What draws from a job's checkpoint, or from the one that it evaluated, in the way in which it did.

    The words may be a stranger's: of those that are more than a name or a number the checkpoint alone is taken.
    """
    if job.trained is not None:
        return command("sample", *(shlex.quote(one_line(word)) for word in job.words if _is_shared(word)))
    checkpoint = find_checkpoint(job)
    return None if checkpoint is None else command("sample", one_line(override("ckpt_path", checkpoint)))


def _is_shared(word: str) -> bool:
    key = read_word(word).key
    plain = PLAIN.fullmatch(word) is not None and "_target_" not in word
    return key == "ckpt_path" or (plain and key.partition(".")[0] in SHARED)
