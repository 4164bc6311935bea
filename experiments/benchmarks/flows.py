"""flowdiff's flows beside other libraries'.   python -m experiments.benchmarks.flows --dataset digits --seconds 120

Every contender of contenders.yaml is trained for the same seconds, one after the other, on all cores, and measured
alike. Written to --out, for each dataset: <dataset>.csv, <dataset>.md, <dataset>.png and a JSON file a contender,
which is not measured again. One that fails is a row with its error.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.benchmarks import contenders
from experiments.benchmarks.plot import plot
from experiments.common import columns, options
from experiments.common.columns import Column
from experiments.common.results import Result, Results
from flowdiff.errors import FlowdiffError, positive
from flowdiff.files import write_text

RUNS = Path("outputs/benchmarks")
COLUMNS = (
    *(columns.NAME, columns.GIVEN, columns.BITS, columns.BITS_ERROR, columns.FD, columns.FD_REAL, columns.RECOGNISED),
    *columns.DENOISING,
    *(columns.PARAMETERS, columns.SECONDS, columns.STEPS, columns.SPEED),
    *(columns.SAMPLER, columns.NFE, columns.SAMPLING, columns.ERROR, columns.NOTE),
)


def report(results: Sequence[Result], out: Path, dataset: str) -> None:
    """CSV, Markdown and plot of one dataset."""
    write_text(out / f"{dataset}.csv", columns.to_csv(COLUMNS, results))
    parts = [f"# {dataset}", columns.conditions(results), columns.to_markdown(COLUMNS, results).rstrip()]
    parts += ["\n".join(who_leads(results))]
    write_text(out / f"{dataset}.md", "\n\n".join(part for part in parts if part) + "\n")
    plot(results, out / f"{dataset}.png")


def who_leads(results: Sequence[Result]) -> list[str]:
    """For each measure, the best of flowdiff's flows and the best of the others: who leads."""
    lines = []
    for what, column, given, lower in (
        ("bits/dim given the class", columns.BITS, "yes", True),
        ("bits/dim without the class", columns.BITS, "no", True),
        ("Fréchet distance", columns.FD, None, True),
        ("recognised share", columns.RECOGNISED, None, False),
        # without the class the Wiener filter that D is compared with doesn't know it either
        *((f"denoising error at σ = {column.name.split('_')[1]}", column, "yes", True) for column in columns.DENOISING),
    ):
        fit = [r for r in results if column.value(r) is not None and given in (None, columns.given_class(r))]
        ours = sorted((r for r in fit if r["request"]["kind"] == "flowdiff"), key=number(column), reverse=not lower)
        others = sorted((r for r in fit if r["request"]["kind"] != "flowdiff"), key=number(column), reverse=not lower)
        if ours and others:
            a, b = number(column)(ours[0]), number(column)(others[0])
            verdict = "equal" if a == b else "flowdiff leads" if (a < b) == lower else "**flowdiff loses**"
            names = [f"{r['request']['name']} {column.text(r)}" for r in (ours[0], others[0])]
            lines.append(f"* {what}: {verdict}, {names[0]} to {names[1]}.")
    return lines


def number(column: Column) -> Callable[[Result], float]:
    """The column's value, where there is one."""
    return lambda result: float(column.value(result) or 0.0)


def main(words: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    out = Path(__file__).with_name("results")
    parser = options.contest_parser("experiments.benchmarks.flows", __doc__, out, RUNS)
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
