"""What speed is made of, measured part by part.   python -m experiments.speed [--parts steps,peers] [--dataset mnist]

    steps       every flow and the U-Net, by both losses: ms, operations, calls, score, memory; eager and compiled
    versions    the same steps here and in another checkout (--against FOLDER)
    peers       our flows beside those of zuko, nflows and normflows
    sampling    samplers beyond the denoiser, ours and k-diffusion's
    overhead    a run of `flowdiff.train` over a bare loop
    start       --help, --cfg job, imports, the first training step
    evaluation  likelihoods of an evaluation, eager and compiled (minutes of compiling for each of --models)

Random weights, one thread on a CPU. What is compared is done in turn, in rounds, and measured in seconds of the
process's CPU (on a GPU by the clock): ratios, least, median and largest, can be compared between runs, milliseconds
can't. Written to results/DEVICE/PART-DATASET.json and .md, and printed row by row.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.common.columns import Column, Row, to_markdown
from experiments.common.configurations import flow_names
from experiments.common.results import describe_machine
from experiments.speed import evaluation, overhead, peers, sampling, start, steps, versions
from experiments.speed.models import UNETS
from experiments.speed.modes import MODES, ON_A_GPU
from flowdiff.files import write_json, write_text

OUT = Path(__file__).with_name("results")
COLUMNS: dict[str, Sequence[Column]] = {
    "steps": steps.COLUMNS,
    "versions": versions.COLUMNS,
    "peers": peers.COLUMNS,
    "sampling": sampling.COLUMNS,
    "overhead": overhead.COLUMNS,
    "start": start.COLUMNS,
    "evaluation": evaluation.COLUMNS,
}
DEFAULT_PARTS = ("steps", "peers", "sampling", "overhead", "start")
Say = Callable[[Row], None]


def measure(part: str, given: argparse.Namespace, say: Say) -> list[Row]:
    """The rows of a part."""
    names, losses = given.models.split(","), given.losses.split(",")
    device, rounds = torch.device(given.device), given.rounds
    measures: dict[str, Callable[[], list[Row]]] = {
        "steps": lambda: steps.measure(names, losses, given.modes.split(","), given.dataset, rounds, device, say),
        "versions": lambda: versions.measure(given.against, names, losses, given.dataset, rounds, say),
        "peers": lambda: peers.measure(peers.KINDS, rounds, say),
        "sampling": lambda: sampling.measure(sampling.build_denoisers(), rounds, say),
        "overhead": lambda: overhead.measure(overhead.TRAININGS, given.dataset, 2 * rounds, say),
        "start": lambda: start.measure(versions.HERE, min(3, rounds), say),
        "evaluation": lambda: evaluation.measure(names, given.dataset, rounds, say),
    }
    return measures[part]()


def report(part: str, content: dict[str, Any], file: Path) -> None:
    """Write the table that a part's JSON is shown as."""
    write_text(file, to_markdown(COLUMNS[part], content["rows"]))


def main(words: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser("python -m experiments.speed", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--parts", help=f"some of {','.join(COLUMNS)} (default: {','.join(DEFAULT_PARTS)})")
    parser.add_argument("--dataset", default="digits", choices=("digits", "mnist"))
    parser.add_argument("--models", default=",".join([*flow_names(), *UNETS]), help="some of them, as coupling,unet")
    parser.add_argument("--losses", default=",".join(steps.LOSSES), help="some of them; a U-Net has denoising")
    parser.add_argument("--modes", default="eager", help=f"of steps: some of {','.join(MODES)}")
    parser.add_argument("--against", type=Path, help="folder of another checkout, for the part versions")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="cpu or cuda, of steps")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(words)
    modes = given.modes.split(",")
    parts = given.parts.split(",") if given.parts else ["versions"] if given.against else DEFAULT_PARTS
    wrong = [word for word in parts if word not in COLUMNS] + [mode for mode in modes if mode not in MODES]
    if wrong or ("versions" in parts) != (given.against is not None):
        parser.error(f"{', '.join(wrong)} is not known" if wrong else "versions and --against need each other")
    if ON_A_GPU in modes and given.device == "cpu":
        parser.error(f"--modes {ON_A_GPU} needs --device cuda")
    torch.set_num_threads(1)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler is to be silent
    for part in parts:
        print(f"{part}:", flush=True)
        machine = describe_machine()
        rows = measure(part, given, lambda row, part=part: say(COLUMNS[part], row))  # type: ignore[misc]
        file = given.out / given.device / f"{part}-{given.dataset}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"machine": machine, "rounds": given.rounds, "rows": rows})
        report(part, json.loads(file.read_text()), file.with_suffix(".md"))
        print(file.with_suffix(".md").read_text(), flush=True)
    return 0


def say(columns: Sequence[Column], row: Row) -> None:
    """A row on its own line."""
    cells = [f"{column.heading}: {text}" for column in columns if (text := column.text(row)) != "–"]
    print("  " + ", ".join(cells), flush=True)


if __name__ == "__main__":
    sys.exit(main())
