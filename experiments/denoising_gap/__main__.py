"""Where a flow's denoising falls behind a free network's.   python -m experiments.denoising_gap --part truth

    truth     models trained towards a D* that is known (`arms`): excess of their error at 1 and 3 minutes of CPU time
    errors    the U-Net and the default flow at full budget: denoising_ratio on training and on test images (`errors`)

One thread, one arm after the other, each a JSON file in results/PART that is not measured again; the table is
results/PART.md.
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from experiments.common import columns
from experiments.common.columns import Column, Row
from experiments.common.results import Contender, Result, Results
from experiments.denoising_gap.arms import HELD_OUT, SIGMAS, TRAINED_ON, Arm, Filter
from experiments.denoising_gap.errors import SETTINGS, SPLITS, Errors
from flowdiff.errors import FlowdiffError, positive
from flowdiff.files import write_text

SECONDS = 180.0
OUT = Path(__file__).with_name("results")
#: In the order of their rows: those with D* as the target first.
ARMS = (
    *[("coupling", "iii", "mixture"), ("unet", "iii", "mixture"), ("jet", "iii", "mixture")],
    *[("coupling", "iii", "unet"), ("unet", "iii", "unet"), ("jet", "iii", "unet")],
    *[("coupling", "ii", "mixture"), ("unet", "ii", "mixture"), ("jet", "ii", "mixture")],
    *[("coupling", "i", "mixture"), ("unet", "i", "mixture"), ("jet", "i", "mixture")],
    ("coupling-denoising", "iii", "mixture"),
)


def over_time(key: str, form: str) -> Column:
    """A number after each of the two times."""

    def text(row: Row) -> str | None:
        return " / ".join(form.format(found[key]) for found in row["found"] if key in found) or None

    return Column(key, key.replace("excess/", "σ = "), text)


def model_of(row: Row) -> str:
    """The arm's name without its truth and kind."""
    request = row["request"]
    name: str = request["name"]
    return (
        name.removeprefix(f"{request['dataset']}-")
        .removesuffix(f"-{request['kind']}")
        .replace("filter", "the Wiener filter")
    )


TRUTH = (
    Column("truth", "D*", lambda row: row["request"]["dataset"]),
    Column("model", "model", model_of),
    Column("given", "given", lambda row: row["request"]["kind"]),
    Column("images", "images", lambda row: row["images"]),
    *(over_time(f"excess/{sigma:g}", "{:.3f}") for sigma in SIGMAS),
    over_time("steps", "{:,}"),
    columns.PARAMETERS,
    columns.ERROR,
)
ERRORS = (
    columns.NAME,
    Column("split", "images", lambda row: row["split"]),
    *(columns.denoising(f"{sigma:g}") for sigma in SIGMAS),
    columns.ERROR,
)


def report_truth(results: Sequence[Result], out: Path) -> None:
    """A row for each arm, and one for the images that it was trained on where they are a limited number."""
    rows: list[Row] = []
    for result in results:
        times = list(result.get("at", {}).values())
        for images in (HELD_OUT, TRAINED_ON):
            found = [at | at[images] for at in times if images in at]
            rows += [result | {"images": images, "found": found}] if found or images == HELD_OUT else []
    write_text(out / "truth.md", columns.to_markdown(TRUTH, rows))


def report_errors(results: Sequence[Result], out: Path) -> None:
    """A row for each model and split."""
    rows = [result | {"split": split, "metrics": result.get(split)} for result in results for split in SPLITS]
    write_text(out / "errors.md", columns.to_markdown(ERRORS, rows))


REPORTS = {"truth": report_truth, "errors": report_errors}


def contenders(part: str, seconds: float, seed: int) -> list[Contender]:
    """Those of a part."""
    if part == "truth":
        return [*map(Filter.of, ("mixture", "unet")), *(Arm.of(*arm, seconds, seed) for arm in ARMS)]
    return [Errors.of(name, seed) for name in SETTINGS]


def main(words: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser("python -m experiments.denoising_gap", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--part", default="truth", choices=tuple(REPORTS))
    parser.add_argument("--arms", help="some of them, with commas, as mixture-coupling-iii (default: all)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of CPU, for each arm of truth")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="measure what is there already once more")
    parser.add_argument("--out", "-o", type=Path, default=OUT, help="takes the results")
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    try:
        everyone = contenders(given.part, positive("--seconds", given.seconds), given.seed)
        results = Results(given.out / given.part, Path("outputs/denoising_gap"), given.again)
        results.measure(everyone, given.arms, functools.partial(REPORTS[given.part], out=given.out))
    except FlowdiffError as error:
        print(error, file=sys.stderr)
        return 1
    print((given.out / f"{given.part}.md").read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
