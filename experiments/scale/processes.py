"""One process and two with the same rows a step, one thread each, in turn: steps a second, and what they send."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.common.spread import Spread

Row = dict[str, Any]
WARM, STEPS = 2, 6
#: Name, words of the command line, rows a step of all processes together.
TRAININGS: tuple[tuple[str, list[str], int], ...] = (
    ("coupling, mixture, digits", ["experiment=digits"], 1024),
    ("U-Net, denoising, digits", ["experiment=digits", "denoiser=unet", "loss=denoising"], 1024),
    ("glow, likelihood, 16×16 patches", ["experiment=patches"], 1024),
    ("stack, likelihood, MNIST", ["experiment=mnist"], 512),
)


def measure(words: Sequence[str], batch: int, count: int) -> Row:
    """What `clock.Clock` says of a training from the command line on `count` processes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "clock.json"
        more = ["+callbacks.clock._target_=experiments.scale.clock.Clock", f"+callbacks.clock.file={file}"]
        more += [f"+callbacks.clock.warm={WARM}", "callbacks=minimal", "logger=none", "metrics=[]", "evaluate=null"]
        more += [f"run_dir={folder}/run", f"trainer.max_steps={WARM + STEPS}", "trainer.limit_val_batches=1"]
        more += [f"dataset.batch_size={batch // count}", "trainer.val_check_interval=1000"]
        more += [] if count == 1 else ["trainer=ddp", f"trainer.devices={count}"]
        command = [sys.executable, "-m", "flowdiff.train", *words, *more]
        done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return dict(json.loads(file.read_text()))


def compare(rounds: int) -> Iterator[Row]:
    """A row for each training; `own` is what DDP adds to the CPU time of a process with the same rows."""
    for name, words, batch in TRAININGS:
        runs = ((batch, 1), (batch, 2), (batch // 2, 1))
        found = [[measure(words, size, n) for size, n in runs] for _ in range(rounds)]
        sent = found[0][1]
        yield {
            "training": name,
            "batch": batch,
            "parameters": sent["parameters"],
            "bytes": sent["bytes"],
            "buckets": sent["buckets"],
            "one": Spread.of([batch / one["seconds"] for one, _, _ in found]),
            "two": Spread.of([batch / two["seconds"] for _, two, _ in found]),
            "ratio": Spread.of([one["seconds"] / two["seconds"] for one, two, _ in found]),
            "cpu_ratio": Spread.of([one["cpu_seconds"] / two["cpu_seconds"] for one, two, _ in found]),
            "own": Spread.of([two["cpu_seconds"] / half["cpu_seconds"] - 1 for _, two, half in found]),
        }
