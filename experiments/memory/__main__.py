"""Resident memory of every flow on MNIST: training, evaluation, sampling.   python -m experiments.memory

Each flow of conf/flow with its own sizes, in a process of its own: two steps of `flowdiff.train dataset=mnist` at the
default batch of 128 (likelihood and denoising, i.e. a double backward), bits/dim of 1,000 test images and D of 1,000 at
the default batch of 500, then samples of the denoiser and by inversion at the default tile. Peaks are those of the
kernel (VmHWM of /proc/self/status, set back before each part; Linux). Written to results/: a JSON file for each flow,
which is not measured again, and memory.md, the table.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from flowdiff import cli, evaluation, mistakes, training
from flowdiff.api import Model
from flowdiff.checkpoint import load
from flowdiff.data.base import loaded
from flowdiff.files import write_json, write_text
from flowdiff.generate import from_config
from flowdiff.metrics.base import measure
from flowdiff.metrics.denoising import Denoising

OUT = Path(__file__).with_name("results")
ROWS = 1000
QUIET = ("callbacks=minimal", "logger=none", "metrics=[]", "evaluate=null", "trainer.limit_val_batches=1")


def peak_of(work: Callable[[], Any]) -> dict[str, float]:
    """Peak of the resident memory in GB, and seconds, while something is done."""
    Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    work()
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return {"gb": int(line.split()[1]) / 1e6, "seconds": time.perf_counter() - start}


def measured(flow: str, invert: bool) -> dict[str, Any]:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["dataset=mnist", f"flow={flow}", f"run_dir={folder}", *QUIET, "trainer.max_steps=2"]
        cfg = mistakes.composed(words, cli.config_dir(), "config")
        found = {"training": peak_of(lambda: training.train(cfg, words))}
        model = Model(load(Path(folder) / "checkpoints" / "last.ckpt"))
    config = training.plain(cfg)
    data = loaded(training.make(config["dataset"]))
    k, labels = data.images("test")
    data._splits = {"train": (k, labels), "test": (k[:ROWS], labels[:ROWS])}
    evaluand = evaluation.build_evaluand(model, data, from_config(model.denoiser, config, images=True))
    metrics = {"bits_per_dim": training.make(config["metrics"]["bits_per_dim"])} if config.get("metrics") else {}
    metrics = metrics or {"bits_per_dim": evaluation.build_metrics(BITS, trusted=True)["bits_per_dim"]}
    found["evaluation"] = peak_of(lambda: measure(metrics | {"denoising": Denoising([0.5], ROWS)}, evaluand))
    for sampler in ("heun", "inversion") if invert else ("heun",):
        settings = training.plain(mistakes.composed([*words, f"sampler={sampler}"], cli.config_dir(), "config"))
        tile = evaluation.evaluation_tile(model.shape)
        batched = from_config(model.denoiser, settings, images=True, num_steps=2, tile=tile)
        found[sampler] = peak_of(lambda batched=batched: batched(None, range(256), quiet=True))
    return {"flow": flow, **found}


BITS = {"bits_per_dim": {"_target_": "flowdiff.metrics.BitsPerDim"}}
PARTS = ("training", "evaluation", "heun", "inversion")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| flow | " + " | ".join(f"{part}, GB" for part in PARTS) + " | seconds |", "|" + " --- |" * 6]
    for row in rows:
        cells = [f"{row[part]['gb']:.2f}" if part in row else "–" for part in PARTS]
        seconds = " / ".join(f"{row[part]['seconds']:.0f}" for part in PARTS if part in row)
        lines.append(f"| {row['flow']} | {' | '.join(cells)} | {seconds} |")
    return "\n".join(lines) + "\n"


def main(words: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    names = sorted(file.stem for file in (cli.config_dir() / "flow").glob("*.yaml"))
    parser = argparse.ArgumentParser("python -m experiments.memory", description=__doc__)
    parser.add_argument("--flows", default=",".join(names), help="some of them, as coupling,linear")
    parser.add_argument("--no-inversion", action="store_true", help="leave out the inverse, which some find slowly")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.one:
        torch.set_num_threads(1)
        write_json(OUT / f"{given.one}.json", measured(given.one, not given.no_inversion))
        return 0
    for flow in given.flows.split(","):
        if not (OUT / f"{flow}.json").exists():
            more = ["--no-inversion"] if given.no_inversion else []
            subprocess.run([sys.executable, "-m", "experiments.memory", "--one", flow, *more], check=False)
    rows = [json.loads(file.read_text()) for file in sorted(OUT.glob("*.json"))]
    write_text(OUT / "memory.md", table(rows))
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
