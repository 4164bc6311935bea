"""What compile=true does to a training step of every flow on digits.   python -m experiments.compile [--device cuda]

Each flow of conf/flow with its own settings under experiment=digits (batches of 128, dropout 0, random weights): are
the gradients those of eager mode, how long does a step take, how long the compilation? Written to results/DEVICE/: a
JSON file for each flow and loss, which is not measured again, and compile.md, the table. With --jobs N so many are
compiled side by side; steps are timed one at a time.
"""

import argparse
import copy
import fcntl
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from experiments.common.columns import Column, to_markdown
from experiments.common.configurations import flow_names
from experiments.common.spread import Spread
from flowdiff.commands.train import request_of
from flowdiff.data.base import read_data
from flowdiff.denoisers.base import Denoiser, Perturbation
from flowdiff.files import write_json, write_text
from flowdiff.metrics.cost import times
from flowdiff.model.construction import build
from flowdiff.training.building import seed_all
from flowdiff.training.compilation import compile_loss

OUT = Path(__file__).with_name("results")
LOCK = Path(tempfile.gettempdir()) / "flowdiff-compile.lock"
LOSSES = ("mixture", "likelihood")
ROUNDS, SECONDS = 3, 1.0  # rounds, and seconds of eager steps in each
COLUMNS = (
    Column("flow", "flow", lambda row: row["flow"]),
    Column("loss", "loss", lambda row: row["loss"]),
    Column("difference", "Δ gradient", lambda row: row["difference"], "{:.0e}"),
    Column("rounding", "float32's own error", lambda row: row["rounding"], "{:.0e}"),
    Column("eager_ms", "ms eager", lambda row: row["eager_ms"], "{:.0f}"),
    Column("compiled_ms", "ms compiled", lambda row: row["compiled_ms"], "{:.0f}"),
    Column("speed_up", "speed-up", lambda row: Spread(row["lowest"], row["speed_up"], row["highest"]).text("{:.2f}")),
    Column("compile_seconds", "compiling, s", lambda row: row["compile_seconds"], "{:.0f}"),
)


def model_and_batch(flow: str, loss: str, device: torch.device) -> tuple[Denoiser, Any, list[Any]]:
    """The denoiser with random weights, the loss, and its further arguments: one batch of digits."""
    words = ["experiment=digits", f"flow={flow}", "base=normal", f"loss={loss}", "run_dir=."]
    request = request_of(*words)
    seed_all(0)
    data = read_data(build(request.dataset))
    denoiser = build(request.denoiser, Denoiser, shape=list(data.shape), num_classes=data.num_classes)
    denoiser.fit(data.statistics(denoiser.num_classes))
    with torch.no_grad():
        for parameter in denoiser.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 100
            parameter.add_(torch.randn_like(parameter), alpha=0.3 / fan_in**0.5)
    k, labels = next(iter(data.batches("train")))
    x0 = data.to_model(k)
    sigma = build(request.noise)(len(x0), x0.device)
    drop = torch.rand(len(x0)) < 0.1
    *batch, drop, progress = (t.to(device) for t in (x0, labels, sigma, torch.randn_like(x0), drop, torch.tensor(0.5)))
    return denoiser.to(device), build(request.loss), [*batch, Perturbation(drop), progress]


def gradients(terms: Callable[..., dict[str, Tensor]], denoiser: Denoiser, batch: Sequence[Any]) -> list[Tensor]:
    """Of the mean loss by each parameter."""
    take_step(terms, denoiser, batch)
    return [p.grad.double() for p in denoiser.parameters() if p.grad is not None]


def take_step(terms: Callable[..., dict[str, Tensor]], denoiser: Denoiser, batch: Sequence[Any]) -> None:
    """Forward and backward."""
    denoiser.zero_grad()
    terms(denoiser, *batch)["loss"].mean().backward()


def distance(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """The largest difference, as a share of the largest of `others`."""
    largest = max(float(g.abs().max()) for g in others)
    return max(float((a - b).abs().max()) for a, b in zip(some, others, strict=True)) / largest


def measure(flow: str, loss_name: str, device: torch.device) -> dict[str, Any]:
    """One row of the table; steps are timed by one process at a time."""
    denoiser, loss, batch = model_and_batch(flow, loss_name, device)
    terms = compile_loss(loss, denoiser)
    eager = gradients(loss, denoiser, batch)
    double = copy.deepcopy(denoiser).double()
    wide = [t.double() if isinstance(t, Tensor) and t.is_floating_point() else t for t in batch]
    exact = gradients(loss, double, wide)
    start = time.perf_counter()
    found = gradients(terms, denoiser, batch)
    compiling = time.perf_counter() - start
    steps = [lambda: take_step(loss, denoiser, batch), lambda: take_step(terms, denoiser, batch)]
    with LOCK.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        count = max(1, round(SECONDS / times(steps[0], 1, device)[0]))
        rounds = [[sum(times(step, count, device)) / count for step in steps] for _ in range(ROUNDS)]
    ratios = Spread.of([one / other for one, other in rounds])
    return {
        "flow": flow,
        "loss": loss_name,
        "difference": distance(found, eager),
        "rounding": distance(eager, exact),
        "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
        "breaks": {str(k): v for k, v in torch._dynamo.utils.counters["graph_break"].items()},
        "compile_seconds": compiling,
        "eager_ms": 1e3 * median(one for one, _ in rounds),
        "compiled_ms": 1e3 * median(other for _, other in rounds),
        "speed_up": ratios.median,
        "lowest": ratios.low,
        "highest": ratios.high,
        "steps": count * ROUNDS,
    }


def main(words: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser("python -m experiments.compile", description=__doc__)
    parser.add_argument("--flows", default=",".join(flow_names()), help="some of them, as coupling,linear")
    parser.add_argument("--losses", default=",".join(LOSSES), help="some of mixture,likelihood")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--jobs", type=int, default=1, help="rows that are compiled side by side")
    given = parser.parse_args(words)
    out = OUT / given.device
    out.mkdir(parents=True, exist_ok=True)
    rows = [(flow, loss) for loss in given.losses.split(",") for flow in given.flows.split(",")]
    rows = [row for row in rows if not (out / "{}_{}.json".format(*row)).exists()]
    if given.jobs > 1:
        with ThreadPoolExecutor(given.jobs) as pool:
            list(pool.map(lambda pair: measure_in_process(pair[0], pair[1], given.device), rows))
    else:
        torch.set_num_threads(1)
        for flow, loss in rows:
            torch._dynamo.utils.counters.clear()
            row = measure(flow, loss, torch.device(given.device))
            write_json(out / f"{flow}_{loss}.json", row)
            print(json.dumps(row), flush=True)
    found = [json.loads(file.read_text()) for file in sorted(out.glob("*.json"))]
    table = to_markdown(COLUMNS, found)
    write_text(out / "compile.md", table)
    print(table)
    return 0


def measure_in_process(flow: str, loss: str, device: str) -> None:
    """Measure one row in a process of its own."""
    command = [sys.executable, "-m", "experiments.compile", "--flows", flow, "--losses", loss, "--device", device]
    subprocess.run(command, check=False)


if __name__ == "__main__":
    sys.exit(main())
