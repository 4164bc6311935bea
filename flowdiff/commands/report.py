"""One run's page.   python -m flowdiff.report outputs/digits/2026-01-31/12-00-00.000000-0

Written to its `report/` (or --output): index.html, one file that holds what was measured and under which conditions,
the curves, pictures and configuration, and how to go on. A run that still trains, failed or was killed has a page too.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from flowdiff.errors import FlowdiffError, at_least, one_line
from flowdiff.files import make_folder


def main(words: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m flowdiff.report",
        description="The page of a run, finished or not: measurements, curves, samples, denoising, configuration.",
    )
    parser.add_argument("run", type=Path, help="a run's folder: outputs/<experiment>/<date>/<time>-<seed>")
    parser.add_argument("-o", "--output", type=Path, help="where the page goes (default: RUN/report)")
    parser.add_argument("--samples", type=int, default=40, help="images drawn from the checkpoint; 0: none")
    given = parser.parse_args(words)
    from flowdiff.reports import run_page

    try:
        at_least("--samples", given.samples, 0)
        job = run_page.read_run(given.run)
        page = run_page.write(job, given.samples, make_output(given.run, given.output))
    except FlowdiffError as error:
        print(error, file=sys.stderr)
        return 1
    print(one_line(f"report: {page}"))
    return 0


def make_output(folder: Path, output: Path | None) -> Path:
    """The folder that a report goes to, made where it isn't there.

    Raises:
        FlowdiffError: it can't be made, or it is a link of the folder's own, which may come from anyone.
    """
    if output is None and (folder / "report").is_symlink():
        raise FlowdiffError(f"{folder / 'report'}: a link, which is not followed; give --output FOLDER")
    return make_folder(output or folder / "report", "--output")
