"""How fast, how large, how near the card's peak: trainings on a GPU.   python -m experiments.gpu

Each row is a training as `flowdiff.train` does it, without pictures: data, step, clipping, AdamW, by Lightning's
Trainer. The clock runs over the steps after the first ones. Floating-point operations are those of the matrix products
and convolutions of one step (torch.utils.flop_counter; forward and all backward passes). The card's peak is a product
of two 8192×8192 matrices in the same precision, measured here. Written to results/: gpu.json, gpu.md.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.common.columns import Column, to_markdown
from experiments.common.configurations import train
from flowdiff.files import write_json, write_text
from flowdiff.metrics.cost import times
from flowdiff.training.run import use_matmul_precision

OUT = Path(__file__).with_name("results")
WARM, SIDE = 8, 8192

#: Name, words of the command line, batch sizes: the experiment's own and a large one.
MODELS: tuple[tuple[str, list[str], tuple[int, int]], ...] = (
    ("coupling, mixture, digits", ["experiment=digits"], (128, 1024)),
    ("stack, likelihood, MNIST", ["experiment=mnist"], (128, 2048)),
    ("glow, likelihood, 32×32 patches", ["experiment=patches", "dataset.size=32"], (128, 1024)),
    ("UNet, denoising, MNIST", ["experiment=mnist", "denoiser=unet", "loss=denoising"], (128, 2048)),
)
#: Name, words, trainer.matmul_precision, dtype of the matrix products, whether small batches are measured.
MODES: tuple[tuple[str, list[str], str, torch.dtype, bool], ...] = (
    ("float32", [], "highest", torch.float32, True),
    ("bf16-mixed", ["trainer.precision=bf16-mixed"], "highest", torch.bfloat16, False),
    ("TF32", [], "high", torch.float32, False),
    ("float32, compiled", ["compile=true"], "highest", torch.float32, True),
)

COLUMNS = (
    Column("training", "training", lambda row: row["model"]),
    Column("precision", "precision", lambda row: row["mode"]),
    Column("batch", "batch", lambda row: row["batch"]),
    Column("milliseconds", "ms a step", lambda row: 1e3 * row["seconds"], "{:.1f}"),
    Column("images_per_second", "images/s", lambda row: row["batch"] / row["seconds"], "{:,.0f}"),
    Column("gigabytes", "GB", lambda row: row["gigabytes"], "{:.2f}"),
    Column("teraflops", "TFLOP/s", lambda row: row["operations"] / row["seconds"] / 1e12, "{:.2f}"),
    Column("share", "of the peak", lambda row: row["operations"] / row["seconds"] / row["peak"], "{:.1%}"),
)


def measure(words: Sequence[str], steps: int) -> dict[str, float]:
    """What `experiments.gpu.clock.Clock` says of one training."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "clock.json"
        more = ["+callbacks.clock._target_=experiments.gpu.clock.Clock"]
        more += [f"+callbacks.clock.file={file}", f"+callbacks.clock.warm={WARM}"]
        more += ["callbacks=minimal", "logger=none", "metrics=[]", "evaluate=null", f"run_dir={folder}"]
        more += [f"trainer.max_steps={WARM + steps}", "trainer.limit_val_batches=1"]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        train([*words, *more])
        return json.loads(file.read_text())


def peak(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of a product of two large square matrices of random numbers."""
    a, b = (torch.randn(SIDE, SIDE, device=device).to(dtype) for _ in range(2))
    a @ b
    return 2 * SIDE**3 / sorted(times(lambda: a @ b, 9, device))[4]


def main(words: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser("python -m experiments.gpu", description=__doc__)
    parser.add_argument("--trainer", default="gpu", help="cpu, where only the command is to be tried")
    parser.add_argument("--steps", type=int, default=30, help="that are timed")
    parser.add_argument("--seconds", type=float, default=1e9, help="no row begins after these")
    parser.add_argument("--modes", default=",".join(mode[0] for mode in MODES), help="those measured (default: all)")
    given = parser.parse_args(words)
    device = torch.device("cuda" if given.trainer == "gpu" else "cpu")
    rows: list[dict[str, Any]] = []
    start = time.monotonic()
    for mode, mode_words, precision, dtype, small in (row for row in MODES if row[0] in given.modes.split(",")):
        with use_matmul_precision(precision):
            best = peak(dtype, device)
        print(f"{mode}: {best / 1e12:.1f} TFLOP/s, cuDNN's TF32: {torch.backends.cudnn.allow_tf32}", flush=True)
        for model, model_words, batches in MODELS:
            for batch in batches if small else batches[1:]:
                if time.monotonic() - start > given.seconds:
                    break
                choices = [*model_words, *mode_words, f"trainer={given.trainer}", f"dataset.batch_size={batch}"]
                choices += [f"trainer.matmul_precision={precision}"]
                found = measure(choices, given.steps)
                rows.append({"model": model, "mode": mode, "batch": batch, "peak": best, **found})
                print(to_markdown(COLUMNS, rows[-1:]).splitlines()[-1], flush=True)
                write_json(OUT / "gpu.json", {"torch": torch.__version__, "device": name_of(device), "rows": rows})
    table = to_markdown(COLUMNS, rows)
    write_text(OUT / "gpu.md", table)
    print(table)
    return 0


def name_of(device: torch.device) -> str:
    """As its maker calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


if __name__ == "__main__":
    sys.exit(main())
