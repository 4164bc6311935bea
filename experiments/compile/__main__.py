"""What compile=true does to a training step of every flow on digits.   python -m experiments.compile

Each flow of conf/flow with its own settings under experiment=digits (batches of 128, dropout 0, random weights): are
the gradients those of eager mode, how long does a step take, how long the compilation? Written to results/: a JSON
file for each flow and loss, which is not measured again, and compile.md, the table.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from flowdiff import checkpoint, cli, mistakes, training
from flowdiff.compilation import compiled
from flowdiff.data.base import loaded
from flowdiff.denoisers import Denoiser
from flowdiff.files import write_json, write_text

OUT = Path(__file__).with_name("results")
LOSSES = ("mixture", "likelihood")
ROUNDS, SECONDS = 3, 1.0  # rounds, and seconds of eager steps in each
Step = Callable[[], Any]


def model_and_batch(flow: str, loss: str) -> tuple[Denoiser, Any, list[Tensor]]:
    """The denoiser with random weights, the loss, and its further arguments: one batch of digits."""
    words = ["experiment=digits", f"flow={flow}", f"loss={loss}", "run_dir=."]
    config = training.plain(mistakes.composed(words, cli.config_dir(), "config"))
    training.seed(0)
    data = loaded(training.make(config["dataset"]))
    denoiser = checkpoint.build_denoiser(config, data.shape, data.num_classes)
    assert isinstance(denoiser, Denoiser)
    denoiser.fit(data.statistics(denoiser.num_classes))
    with torch.no_grad():
        for parameter in denoiser.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 100
            parameter.add_(torch.randn_like(parameter), alpha=0.3 / fan_in**0.5)
    k, labels = next(iter(data.train_dataloader()))
    x0 = data.to_model(k)
    sigma = training.make(config["noise"])(len(x0), x0.device)
    drop = torch.rand(len(x0)) < 0.1
    return denoiser, training.make(config["loss"]), [x0, labels, sigma, torch.randn_like(x0), drop, torch.tensor(0.5)]


def gradients(terms: Callable[..., dict[str, Tensor]], denoiser: Denoiser, batch: Sequence[Tensor]) -> list[Tensor]:
    """Of the mean loss by each parameter."""
    denoiser.zero_grad()
    terms(denoiser, *batch)["loss"].mean().backward()
    return [p.grad.double() for p in denoiser.parameters() if p.grad is not None]


def distance(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """The largest difference, as a share of the largest of ``others``."""
    largest = max(float(g.abs().max()) for g in others)
    return max(float((a - b).abs().max()) for a, b in zip(some, others, strict=True)) / largest


def seconds_of(step: Step, times: int) -> float:
    """Of one call, the mean over ``times`` of them."""
    start = time.perf_counter()
    for _ in range(times):
        step()
    return (time.perf_counter() - start) / times


def measured(flow: str, loss_name: str) -> dict[str, Any]:
    """One row of the table."""
    denoiser, loss, batch = model_and_batch(flow, loss_name)
    terms = compiled(loss, denoiser)
    eager = gradients(loss, denoiser, batch)
    double = copy.deepcopy(denoiser).double()
    wide = [t.double() if t.is_floating_point() else t for t in batch]
    exact = gradients(loss, double, wide)
    start = time.perf_counter()
    found = gradients(terms, denoiser, batch)
    compiling = time.perf_counter() - start
    steps = [lambda: gradients(loss, denoiser, batch), lambda: gradients(terms, denoiser, batch)]
    times = max(1, round(SECONDS / seconds_of(steps[0], 1)))
    rounds = [[seconds_of(step, times) for step in steps] for _ in range(ROUNDS)]
    ratios = sorted(one / other for one, other in rounds)
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
        "speed_up": median(ratios),
        "lowest": ratios[0],
        "highest": ratios[-1],
        "steps": times * ROUNDS,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    names = (
        "flow",
        "loss",
        "|Δ gradient|",
        "float32's own error",
        "ms eager",
        "ms compiled",
        "speed-up",
        "compiling, s",
    )
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    for row in rows:
        speed = f"{row['speed_up']:.2f} ({row['lowest']:.2f}–{row['highest']:.2f})"
        cells = [row["flow"], row["loss"], f"{row['difference']:.0e}", f"{row['rounding']:.0e}"]
        cells += [f"{row['eager_ms']:.0f}", f"{row['compiled_ms']:.0f}", speed, f"{row['compile_seconds']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(words: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    names = sorted(file.stem for file in (cli.config_dir() / "flow").glob("*.yaml"))
    parser = argparse.ArgumentParser("python -m experiments.compile", description=__doc__)
    parser.add_argument("--flows", default=",".join(names), help="some of them, as coupling,linear")
    parser.add_argument("--losses", default=",".join(LOSSES), help="some of mixture,likelihood")
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    for loss in given.losses.split(","):
        for flow in given.flows.split(","):
            file = OUT / f"{flow}_{loss}.json"
            if not file.exists():
                torch._dynamo.utils.counters.clear()
                write_json(file, measured(flow, loss))
                print(file.read_text(), flush=True)
    rows = [json.loads(file.read_text()) for file in sorted(OUT.glob("*.json"))]
    write_text(OUT / "compile.md", table(rows))
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
