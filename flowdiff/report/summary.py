r"""What a sweep says: means over seeds, and differences that are paired.

For a swept key and a metric, with x_v,j the metric of the job with value v and everything else equal to j (the seed and
the other swept keys):

    mean ± standard error            x̄_v ± s_v/√n over the jobs with value v
    paired difference from v₀        d̄ ± t_{0.975, n−1}·s_d/√n,   d_j = x_v,j − x_v₀,j, over the j that both have

A value is called better than the baseline v₀ only where this 95 % interval lies on one side of 0 (Student's t). Pairs
share their seed, hence their data order, noise and initial weights: what these have in common cancels.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from flowdiff.collect import Job, swept_keys
from flowdiff.errors import ConfigError

#: Keys that tell repetitions of one setting apart, or say nothing about it.
REPETITIONS = ("seed", "ckpt_path", "run")
IGNORED = ("resume_sweep", "output_dir")
#: A key with more values than this (the rate in a search) is drawn as points, not as colours or grids of samples.
FEW = 12
#: Metrics of which more is better, by the start of their names; of the others less is.
MORE_IS_BETTER = ("recognised", "class_posterior", "ood_auroc", "isc", "precision", "recall")


@dataclass(frozen=True)
class Mean:
    """n numbers: their mean and its standard error (None for a single one)."""

    n: int
    mean: float
    error: float | None

    def __str__(self) -> str:
        if not self.error:
            return f"{self.mean:.4g}"
        digits = max(0, 1 - math.floor(math.log10(self.error)))  # two of the error's
        return f"{self.mean:.{digits}f} ± {self.error:.{digits}f}"


@dataclass(frozen=True)
class Difference:
    """Of a value from the baseline in one metric: n pairs, their mean difference and its 95 % interval."""

    metric: str
    n: int
    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """better, worse, or that nothing is shown."""
        if not (self.low > 0 or self.high < 0):
            return "no difference shown"
        return "better" if (self.mean > 0) == more_is_better(self.metric) else "worse"

    def __str__(self) -> str:
        return f"{self.mean:+.3g} [{self.low:+.3g}, {self.high:+.3g}]"


def more_is_better(metric: str) -> bool:
    """Whether larger values of a metric are better."""
    return metric.startswith(MORE_IS_BETTER)


def studied(jobs: Sequence[Job]) -> list[str]:
    """The swept keys that are settings, not repetitions of one."""
    return [key for key in swept_keys(jobs) if key not in (*REPETITIONS, *IGNORED) and len(values(jobs, key)) > 1]


def values(jobs: Sequence[Job], key: str) -> list[str]:
    """The values of a key, in the order of the jobs."""
    return list(dict.fromkeys(job.overrides[key] for job in jobs if key in job.overrides))


def few(jobs: Sequence[Job], key: str) -> bool:
    """Whether a key has so few values that each may have a colour, a line of a table and a grid of samples."""
    return len(values(jobs, key)) <= FEW


def metrics(jobs: Sequence[Job]) -> list[str]:
    """The metrics that were measured of the models (what was measured of the real data stands at ``/real``)."""
    names = dict.fromkeys(name for job in jobs for name, value in job.metrics.items() if value is not None)
    return [name for name in names if not name.endswith("/real")]


def numbers(jobs: Sequence[Job], key: str, value: str, metric: str) -> list[float]:
    """The metric of the jobs with this value, as far as it was measured."""
    found = (job.metrics.get(metric) for job in jobs if job.overrides.get(key) == value)
    return [number for number in found if number is not None]


def mean_of(found: Sequence[float]) -> Mean | None:
    """Mean and standard error; None of nothing."""
    if not found:
        return None
    error = statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else None
    return Mean(len(found), statistics.fmean(found), error)


def best(jobs: Sequence[Job], key: str, metric: str) -> str | None:
    """The value with the best mean; None if no two can be compared."""
    means = {value: mean_of(numbers(jobs, key, value, metric)) for value in values(jobs, key)}
    known = {value: mean.mean for value, mean in means.items() if mean is not None}
    if len(known) < 2:
        return None
    return (max if more_is_better(metric) else min)(known, key=lambda value: known[value])


def difference(jobs: Sequence[Job], key: str, value: str, baseline: str, metric: str) -> Difference | None:
    """The paired difference of ``value`` from ``baseline``; None with fewer than two pairs."""
    others = [k for k in swept_keys(jobs) if k != key and k not in IGNORED]

    def by_pair(chosen: str) -> dict[tuple[str | None, ...], float]:
        return {
            tuple(job.overrides.get(k) for k in others): number
            for job in jobs
            if job.overrides.get(key) == chosen and (number := job.metrics.get(metric)) is not None
        }

    ours, theirs = by_pair(value), by_pair(baseline)
    pairs = [ours[j] - theirs[j] for j in ours if j in theirs]
    if len(pairs) < 2:
        return None
    mean, deviation = statistics.fmean(pairs), statistics.stdev(pairs)
    half = float(stats.t.ppf(0.975, len(pairs) - 1)) * deviation / math.sqrt(len(pairs))
    return Difference(metric, len(pairs), mean, mean - half, mean + half)


def baselines(jobs: Sequence[Job], given: Sequence[str]) -> dict[str, str]:
    """The baseline of each studied key: what was given as ``key=value``, else its first value.

    Raises:
        ConfigError: a key or value that the sweep doesn't have.
    """
    chosen = {key: values(jobs, key)[0] for key in studied(jobs)}
    for word in given:
        key, _, value = word.partition("=")
        if key not in chosen:
            raise ConfigError("--baseline", word, f"the swept keys are {', '.join(chosen) or 'none'}")
        if value not in values(jobs, key):
            raise ConfigError("--baseline", word, f"the values of {key} are {', '.join(values(jobs, key))}")
        chosen[key] = value
    return chosen


Table = tuple[list[str], list[list[str]]]


def means_table(jobs: Sequence[Job], key: str) -> Table:
    """Header and rows: a row a value, a column a metric, the best one between asterisks."""
    shown = metrics(jobs)
    winners = {metric: best(jobs, key, metric) for metric in shown}
    rows = []
    for value in values(jobs, key):
        mine = [job for job in jobs if job.overrides.get(key) == value]
        cells = [value, f"{sum(job.status == 'done' for job in mine)}/{len(mine)}"]
        for metric in shown:
            mean = mean_of(numbers(jobs, key, value, metric))
            text = "" if mean is None else str(mean)
            cells.append(f"**{text}**" if winners[metric] == value else text)
        rows.append(cells)
    return [key, "jobs done", *shown], rows


def crossed_table(jobs: Sequence[Job], key: str, other: str, metric: str) -> Table:
    """Header and rows of one metric: a row a value of a key, a column a value of the other."""
    columns = values(jobs, other)
    rows = []
    for value in values(jobs, key):
        cells = [[job for job in jobs if job.overrides.get(other) == column] for column in columns]
        means = (mean_of(numbers(cell, key, value, metric)) for cell in cells)
        rows.append([value, *("" if mean is None else str(mean) for mean in means)])
    return [metric, *columns], rows


def differences_table(jobs: Sequence[Job], key: str, baseline: str) -> Table:
    """Header and rows: for each other value and metric the paired difference, its interval and what it shows."""
    rows = []
    for value in values(jobs, key):
        for metric in metrics(jobs) if value != baseline else ():
            found = difference(jobs, key, value, baseline, metric)
            if found is not None:
                rows.append([value, metric, str(found.n), str(found), found.verdict])
    return [key, "metric", "pairs", f"difference from {baseline} [95 % interval]", "shown"], rows
