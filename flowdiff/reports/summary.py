r"""What a sweep says: means over seeds, and differences that are paired.

For a swept key and a metric, with x_v,j the metric of the job with value v and everything else equal to j (the seed s
and the other swept keys), and x̄_v,s the mean over the jobs of one seed:

    mean ± standard error            the mean of x̄_v,s over the n seeds ± their standard deviation/√n
    paired difference from v₀        d̄ ± t_{0.975, n−1}·s_d/√n,   d_s the mean over j of seed s of x_v,j − x_v₀,j

A replicate is another seed with all else equal. Jobs that share a seed and differ in other keys are no replicates: they
have data order, noise and initial weights in common. From one seed there is a difference, but neither an interval nor a
verdict. A value is called better than the baseline v₀ only where the 95 % interval lies on one side of 0 (Student's t),
and the metric says which way is better.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy import stats

from flowdiff.errors import ConfigError
from flowdiff.evaluation.tables import Bold
from flowdiff.quantities import Better
from flowdiff.reports.rows import swept_keys
from flowdiff.runs.job_folders import Job, better

#: Keys that tell repetitions of one setting apart, or say nothing about it.
REPETITIONS = ("seed", "ckpt_path", "run")
IGNORED = ("resume_sweep", "output_dir")
#: A key with more values than this (the rate in a search) is drawn as points, not as colours or grids of samples.
FEW = 12


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
    """Of a value from the baseline in one metric.

    Attributes:
        metric: its name.
        pairs: jobs that differ in the compared key alone; 0: there are none, and `mean` is that of the two means.
        seeds: among them.
        mean: difference.
        half: of the 95 % interval; None: one seed, or no pairs.
        better: which way of the metric is, None if it doesn't say.
        differ: without pairs, the keys that the jobs differ in as well.
    """

    metric: str
    pairs: int
    seeds: int
    mean: float
    half: float | None
    better: Better | None
    differ: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """better, worse, or why that isn't said."""
        if not self.pairs:
            words = f"not alike in {', '.join(self.differ)}" if self.differ else "no pairs"
            return words if self.seeds > 1 else f"one seed, {words}"
        if self.half is None:
            return "one seed"
        if abs(self.mean) <= self.half:
            return "no difference shown"
        if self.better is None:
            return "differs"
        return "better" if (self.mean > 0) == (self.better == "higher") else "worse"

    def __str__(self) -> str:
        if self.half is None:
            return f"{self.mean:+.3g}"
        return f"{self.mean:+.3g} [{self.mean - self.half:+.3g}, {self.mean + self.half:+.3g}]"


def list_studied(jobs: Sequence[Job]) -> list[str]:
    """The swept keys that are settings, not repetitions of one."""
    return [key for key in swept_keys(jobs) if key not in (*REPETITIONS, *IGNORED) and len(values(jobs, key)) > 1]


def values(jobs: Sequence[Job], key: str) -> list[str]:
    """The values of a key, in the order of the jobs."""
    return list(dict.fromkeys(job.overrides[key] for job in jobs if key in job.overrides))


def few(jobs: Sequence[Job], key: str) -> bool:
    """Whether a key has so few values that each may have a colour, a line of a table and a grid of samples."""
    return len(values(jobs, key)) <= FEW


def metrics(jobs: Sequence[Job]) -> list[str]:
    """The metrics that were measured of the models, not of the real data or of a reference."""
    pairs = ((job.quantities[name], value) for job in jobs for name, value in job.metrics.items())
    return list(
        dict.fromkeys(quantity.key for quantity, value in pairs if value is not None and not quantity.reference)
    )


def list_plotted(jobs: Sequence[Job]) -> list[str]:
    """Those of them that stand for their kind in plots."""
    chosen = {name for job in jobs for name, quantity in job.quantities.items() if quantity.plotted}
    return [name for name in metrics(jobs) if name in chosen]


def read_measured(jobs: Sequence[Job], key: str, value: str, metric: str) -> list[tuple[str | None, float]]:
    """Seed and metric of the jobs with this value, as far as it was measured."""
    mine = [job for job in jobs if job.overrides.get(key) == value]
    return [(job.seed, number) for job in mine if (number := job.metrics.get(metric)) is not None]


def numbers(jobs: Sequence[Job], key: str, value: str, metric: str) -> list[float]:
    """The metric of the jobs with this value, as far as it was measured."""
    return [number for _, number in read_measured(jobs, key, value, metric)]


def by_seed(found: Sequence[tuple[str | None, float]]) -> list[float]:
    """The mean over the numbers of each seed."""
    seeds = dict.fromkeys(seed for seed, _ in found)
    return [statistics.fmean(number for own, number in found if own == seed) for seed in seeds]


def mean_of(found: Sequence[tuple[str | None, float]]) -> Mean | None:
    """Mean over seeds and its standard error, of numbers with their seeds; None of nothing."""
    if not found:
        return None
    each = by_seed(found)
    error = statistics.stdev(each) / math.sqrt(len(each)) if len(each) > 1 else None
    return Mean(len(each), statistics.fmean(each), error)


def best(jobs: Sequence[Job], key: str, metric: str) -> str | None:
    """The value with the best mean; None if no two can be compared, or the metric doesn't say which way is better."""
    direction = better(jobs, metric)
    means = {value: mean_of(read_measured(jobs, key, value, metric)) for value in values(jobs, key)}
    known = {value: mean.mean for value, mean in means.items() if mean is not None}
    if len(known) < 2 or direction is None:
        return None
    return (max if direction == "higher" else min)(known, key=lambda value: known[value])


def setting(job: Job, keys: Sequence[str]) -> tuple[str | None, ...]:
    """What a job has in common with the one that it is compared with: values of these keys, and its seed.

    The path of a checkpoint counts only where it isn't known what its run was told.
    """
    path = job.overrides.get("ckpt_path")
    if job.trained:
        path = None if path is None else Path(path.strip("'\"")).name
    return (job.seed, path, *(job.overrides.get(key) for key in keys))


def difference(jobs: Sequence[Job], key: str, value: str, baseline: str, metric: str) -> Difference | None:
    """The difference of `value` from `baseline`, paired where there are pairs; None where one wasn't measured."""
    others = [k for k in swept_keys(jobs) if k not in (key, "ckpt_path", "run", *IGNORED)]

    def by_setting(chosen: str) -> dict[tuple[str | None, ...], float]:
        found: dict[tuple[str | None, ...], list[float]] = {}
        for job in jobs:
            number = job.metrics.get(metric)
            if job.overrides.get(key) == chosen and number is not None:
                found.setdefault(setting(job, others), []).append(number)
        return {own: statistics.fmean(numbers) for own, numbers in found.items()}

    ours, theirs, direction = by_setting(value), by_setting(baseline), better(jobs, metric)
    if not (ours and theirs):
        return None
    pairs = [(own[0], ours[own] - theirs[own]) for own in ours if own in theirs]
    if not pairs:
        apart = zip(others, zip(*(own[2:] for own in (*ours, *theirs)), strict=True), strict=True)
        differ = tuple(k for k, found in apart if len(set(found)) > 1 and k != "seed")
        mean = statistics.fmean(ours.values()) - statistics.fmean(theirs.values())
        return Difference(metric, 0, len({own[0] for own in (*ours, *theirs)}), mean, None, direction, differ)
    each = by_seed(pairs)
    half = None
    if len(each) > 1:
        half = float(stats.t.ppf(0.975, len(each) - 1)) * statistics.stdev(each) / math.sqrt(len(each))
    return Difference(metric, len(pairs), len(each), statistics.fmean(each), half, direction)


def baselines(jobs: Sequence[Job], given: Sequence[str]) -> dict[str, str]:
    """The baseline of each studied key: what was given as `key=value`, else its first value.

    Raises:
        ConfigError: a key or value that the sweep doesn't have.
    """
    chosen = {key: values(jobs, key)[0] for key in list_studied(jobs)}
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
    """Header and rows: a row a value, a column a metric, the best one bold."""
    shown = metrics(jobs)
    winners = {metric: best(jobs, key, metric) for metric in shown}
    rows = []
    for value in values(jobs, key):
        mine = [job for job in jobs if job.overrides.get(key) == value]
        cells = [value, f"{sum(job.status == 'done' for job in mine)}/{len(mine)}"]
        for metric in shown:
            mean = mean_of(read_measured(jobs, key, value, metric))
            text = "" if mean is None else str(mean)
            cells.append(Bold(text) if winners[metric] == value else text)
        rows.append(cells)
    return [key, "jobs done", *shown], rows


def cross_table(jobs: Sequence[Job], key: str, other: str, metric: str) -> Table:
    """Header and rows of one metric: a row a value of a key, a column a value of the other."""
    columns = values(jobs, other)
    rows = []
    for value in values(jobs, key):
        cells = [[job for job in jobs if job.overrides.get(other) == column] for column in columns]
        means = (mean_of(read_measured(cell, key, value, metric)) for cell in cells)
        rows.append([value, *("" if mean is None else str(mean) for mean in means)])
    return [metric, *columns], rows


def differences_table(jobs: Sequence[Job], key: str, baseline: str) -> Table:
    """Header and rows: for each other value and metric the difference, its interval if there is one, what it shows."""
    found = [
        (value, difference(jobs, key, value, baseline, metric))
        for value in values(jobs, key)
        for metric in (metrics(jobs) if value != baseline else ())
    ]
    rows = [[value, d.metric, str(d.pairs), str(d.seeds), str(d), d.verdict] for value, d in found if d is not None]
    intervals = sum(d is not None and d.half is not None for _, d in found)
    said = f" [95 % each, {intervals} comparisons, not corrected]" if intervals > 1 else " [95 % interval]"
    heading = f"difference from {baseline}{said if intervals else ''}"
    return [key, "metric", "pairs", "seeds", heading, "shown"], rows
