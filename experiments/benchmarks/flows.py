"""flowdiff's flows beside other libraries'.   python -m experiments.benchmarks.flows --dataset digits --seconds 120

Every contender of contenders.yaml is trained for the same seconds, one after the other, on all cores, and measured
alike. Written to --out, for each dataset: <dataset>.csv, <dataset>.md, <dataset>.png and a JSON file a contender,
which is not measured again. One that fails is a row with its error.
"""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.benchmarks import contenders, table
from experiments.benchmarks.contenders import Result, Results
from experiments.benchmarks.plot import plot
from flowdiff.errors import FlowdiffError, positive
from flowdiff.files import write_text

COLUMNS = (
    *(table.NAME, table.GIVEN, table.BITS, table.BITS_ERROR, table.FD, table.FD_REAL, table.RECOGNISED),
    *table.DENOISING,
    *(table.PARAMETERS, table.SECONDS, table.STEPS, table.SPEED, table.SAMPLER, table.NFE, table.SAMPLING),
    *(table.ERROR, table.NOTE),
)


def report(results: Sequence[Result], out: Path, dataset: str) -> None:
    """CSV, Markdown and plot of one dataset."""
    write_text(out / f"{dataset}.csv", table.to_csv(COLUMNS, results))
    parts = [f"# {dataset}", table.conditions(results), table.to_markdown(COLUMNS, results).rstrip()]
    parts += ["\n".join(table.ahead(results))]
    write_text(out / f"{dataset}.md", "\n\n".join(part for part in parts if part) + "\n")
    plot(results, out / f"{dataset}.png")


def main(words: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    out = Path(__file__).with_name("results")
    parser = contenders.command_line("experiments.benchmarks.flows", __doc__, out, contenders.RUNS)
    parser.add_argument("--dataset", choices=[*contenders.DATASETS, "both"], default="digits")
    parser.add_argument("--contenders", type=Path, default=contenders.FILE, help="another list of contenders")
    given = parser.parse_args(words)
    try:
        positive("--seconds", given.seconds)
        for dataset in contenders.DATASETS if given.dataset == "both" else (given.dataset,):
            everyone = contenders.contenders(dataset, given.seconds, given.seed, given.contenders)
            results = Results(given.out / dataset, given.runs, given.again)
            results.measure(everyone, given.models, functools.partial(report, out=given.out, dataset=dataset))
            print((given.out / f"{dataset}.md").read_text())
    except FlowdiffError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
