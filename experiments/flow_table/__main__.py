"""Every flow of conf/flow on digits under one budget.   python -m experiments.flow_table --seconds 120

Each is trained by `flowdiff.train experiment=digits flow=NAME`, one after the other, on all cores, with its own
settings. Written to --out: flows.csv, flows.md (the README's table) and a JSON file a flow, which is not measured
again. One that fails is a row with its error.
"""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.common import columns, options
from experiments.common.configurations import flow_names
from experiments.common.results import Contender, Result, Results
from flowdiff.errors import FlowdiffError, positive
from flowdiff.files import write_text

DATASET = "digits"
RUNS = Path("outputs/flow_table")
COLUMNS = (
    *(columns.NAME, columns.BITS, columns.FD, columns.FD_REAL, columns.RECOGNISED, *columns.DENOISING),
    *(columns.PARAMETERS, columns.SPEED, columns.RATE, columns.STEPS, columns.SECONDS),
    *(columns.SAMPLER, columns.NFE, columns.SAMPLING, columns.INVERSION, columns.ERROR, columns.NOTE),
)


def flows(seconds: float, seed: int) -> list[Contender]:
    """One contender for each file in conf/flow."""
    return [Contender(name, "flowdiff", [f"flow={name}"], DATASET, seconds, seed) for name in flow_names()]


def report(results: Sequence[Result], out: Path) -> None:
    """CSV and Markdown."""
    write_text(out / "flows.csv", columns.to_csv(COLUMNS, results))
    write_text(out / "flows.md", f"{columns.conditions(results)}\n\n{columns.to_markdown(COLUMNS, results)}")


def main(words: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    out = Path(__file__).with_name("results")
    given = options.contest_parser("experiments.flow_table", __doc__, out, RUNS).parse_args(words)
    try:
        everyone = flows(positive("--seconds", given.seconds), given.seed)
        results = Results(given.out / "flows", given.runs, given.again)
        results.measure(everyone, given.models, functools.partial(report, out=given.out))
    except FlowdiffError as error:
        print(error, file=sys.stderr)
        return 1
    print((given.out / "flows.md").read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
