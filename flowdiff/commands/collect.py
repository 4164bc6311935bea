"""A sweep's report.   python -m flowdiff.collect multirun/digits/2026-01-31/12-00-00.000000

Every folder below the given one that holds `status.json` or `.hydra/overrides.yaml` is a job. Written to its
`report/` (or --output): results.csv, a row a job; summary.md, means over seeds and paired differences for each
swept key, with plots and a grid of samples for each value; index.html, all of it in one file. Which job is the best
by a metric, and the command that samples from it, is printed too. Jobs that still run,
failed or were killed are rows like the others, so it can be called at any time.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from flowdiff.commands.report import make_output
from flowdiff.errors import FlowdiffError, at_least, one_line
from flowdiff.evaluation import tables
from flowdiff.files import write_text
from flowdiff.reports.rows import count_jobs, keep_metrics, rows
from flowdiff.runs.job_folders import collect


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
    parser.add_argument(
        "--best", metavar="NAME", help="the metric by which one job is called the best (default: the first that can be)"
    )
    parser.add_argument("--samples", type=int, default=20, help="images drawn for each value of a key; 0: none")
    given = parser.parse_args(words)
    from flowdiff.reports import best, page, summary

    try:
        at_least("--samples", given.samples, 0)
        jobs = collect(given.folder)
        header, table = rows(jobs, given.folder)
        if given.metrics:
            keep_metrics(jobs, given.metrics.split(","))
        winner = best.find_best(jobs, given.folder, given.best)
        baselines = summary.baselines(jobs, given.baseline)
        output = make_output(given.folder, given.output)
        write_text(output / "results.csv", tables.to_csv(header, table))
        command = shlex.join(["python", "-m", "flowdiff.collect", *(sys.argv[1:] if words is None else words)])
        page.write(jobs, given.folder, baselines, winner, given.samples, output, command)
    except FlowdiffError as error:
        print(error, file=sys.stderr)
        return 1
    tables.show(header, table, least=40 + 14 * len(header))
    print(count_jobs(jobs))
    if winner is not None:
        print(winner.sentence, *filter(None, [winner.command]), sep="\n  ")
    print(one_line(f"report: {output / 'index.html'}, {output / 'summary.md'}, {output / 'results.csv'}"))
    return 0
