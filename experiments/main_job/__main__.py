"""The records: on each data set the flow and a U-Net without a density, side by side, one thread each.

    python -m experiments.main_job [--data digits,mnist,fashion_mnist] [--seeds 0,1,2] [--runs outputs/main_job]

Both are trained by the real command line, `flowdiff.train experiment=DATA seed=SEED WORDS`. The U-Net's steps are
chosen so that both take about the same time; how long each took stands in the table. What was measured goes to
results/DATA-MODEL-SEED.json, and `python -m experiments.main_job.table` makes the table of it.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.common.budget import read_windows
from experiments.common.columns import to_markdown
from experiments.main_job.table import COLUMNS, RESULTS, rows
from flowdiff.errors import ConfigError, FlowdiffError
from flowdiff.files import write_json

METRICS = "metrics=[bits_per_dim,denoising,fd,recognised,cost]"
UNET = ("denoiser=unet", "loss=denoising", "lr=1e-3", "num_steps=64")
SMALL = (*UNET, "denoiser.width=24")
#: The words of each model; what a model can't be measured by is left out by the command itself.
WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "digits": {
        "flow": (),
        "unet": (*UNET, "augment=none", "dropout=0", "trainer.max_steps=1800", "trainer.val_check_interval=300"),
    },
    "mnist": {
        "flow": (),
        "unet": (*SMALL, "trainer.max_steps=6300", "trainer.val_check_interval=1575"),
    },
    "fashion_mnist": {  # half of the recipe's time
        "flow": ("trainer.max_steps=2000", "trainer.val_check_interval=500"),
        "unet": (*SMALL, "trainer.max_steps=3200", "trainer.val_check_interval=800"),
    },
}


def train_both(data: str, seed: int, runs: Path) -> None:
    """Train the models of a data set at the same time and record them.

    Raises:
        FlowdiffError: one of them failed; the message names its log.
    """
    started = []
    for model, words in WORDS[data].items():
        run = runs / f"{data}-{model}-{seed}"
        run.parent.mkdir(parents=True, exist_ok=True)
        settings = ["callbacks=minimal", "logger=csv", METRICS, f"hydra.run.dir='{run}'"]
        call = [sys.executable, "-m", "flowdiff.train", f"experiment={data}", f"seed={seed}", *words, *settings]
        with run.with_suffix(".log").open("wb") as log:
            one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
            started.append((run, subprocess.Popen(call, stdout=log, stderr=log, env=one_thread)))
    codes = [process.wait() for _, process in started]
    for (run, _), code in zip(started, codes, strict=True):
        if code:
            raise FlowdiffError(f"{run.name} failed: see {run.with_suffix('.log')}")
    for run, _ in started:
        record(run)


def record(run: Path) -> None:
    """Keep what a run, a folder named DATA-MODEL-SEED, has measured, and how long its steps took."""
    data, model, seed = run.name.split("-")
    taken, logged = read_windows(run)
    words = [f"experiment={data}", f"seed={seed}", *WORDS[data][model]]
    result = {
        "words": words,
        "training_seconds": round(sum(taken), 1),
        "training_steps": len(taken) * logged,
        "metrics": json.loads((run / "metrics.json").read_text()),
    }
    write_json(RESULTS / f"{run.name}.json", result)


def main(words: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser("python -m experiments.main_job", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", default=",".join(WORDS), help="some of them, with commas")
    parser.add_argument("--seeds", default="0", help="with commas")
    parser.add_argument("--runs", type=Path, default=Path("outputs/main_job"), help="takes the run folders")
    given = parser.parse_args(words)
    try:
        for data in given.data.split(","):
            if data not in WORDS:
                raise ConfigError("--data", data, f"must be among {', '.join(WORDS)}")
            for seed in given.seeds.split(","):
                train_both(data, int(seed), given.runs)
    except FlowdiffError as error:
        print(error, file=sys.stderr)
        return 1
    print(to_markdown(COLUMNS, rows()), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
