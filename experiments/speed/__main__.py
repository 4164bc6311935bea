"""What a training step costs: every flow and the U-Net, by both losses.   python -m experiments.speed [--dataset mnist]

Random weights, one batch, one thread on a CPU. Steps are timed in turn, in rounds, in seconds of the process's CPU on a
CPU and by the clock on a GPU, and so is a product of two 1024² matrices, whose rate is the machine's: a share of it can
be compared between runs, milliseconds can't. Written to results/DEVICE/NAME-DATASET.json and .md, and printed.

    GFLOP         of matrix products, convolutions and attention in a step
    share         of the rate of the matrix product
    calls         of ATen in a step
    score         time of a score without a tape over that of log p, and over that of a step
    MB            kept for the backward pass
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.common.columns import Column, to_markdown
from experiments.common.configurations import flow_names
from experiments.common.counting import count_calls, count_flop, count_kept
from experiments.common.results import describe_machine
from experiments.common.spread import Spread
from flowdiff.commands.train import request_of
from flowdiff.data.base import read_data
from flowdiff.denoisers.base import Denoiser
from flowdiff.files import write_json, write_text
from flowdiff.model.construction import build
from flowdiff.training.building import seed_all
from flowdiff.training.compilation import compile_loss

OUT = Path(__file__).with_name("results")
SIDE = 1024
LOSSES = ("likelihood", "mixture")
COLUMNS = (
    Column("name", "model", lambda row: row["name"]),
    Column("loss", "loss", lambda row: row["loss"]),
    Column("ms", "ms a step", lambda row: Spread(*row["ms"]).text()),
    Column("gflop", "GFLOP", lambda row: row["gflop"], "{:.3g}"),
    Column("share", "share", lambda row: row["share"], "{:.1%}"),
    Column("calls", "calls", lambda row: row["calls"], "{:,}"),
    Column("score", "score / log p", lambda row: row["score"], "{:.2f}"),
    Column("score_of_step", "score / step", lambda row: row["score_of_step"], "{:.2f}"),
    Column("kept", "MB", lambda row: row["kept"] / 1e6, "{:.0f}"),
)
Work = Callable[[], object]


@dataclass
class Contender:
    """One model with one loss: its training step, and without a tape log p and the score, if it has them."""

    name: str
    loss: str
    step: Work
    log_prob: Work | None
    score: Work | None


def build_contender(name: str, loss_name: str, dataset: str, device: torch.device, compiled: bool) -> Contender:
    """A flow of conf/flow, or `unet`, on one batch."""
    words = [f"dataset={dataset}", f"loss={loss_name}", "run_dir=."]
    words += ["experiment=mnist"] if dataset == "mnist" else []
    words.append(f"denoiser={name}" if name == "unet" else f"flow={name}")
    request = request_of(*words)
    seed_all(0)
    data = read_data(build(request.dataset))
    denoiser = build(request.denoiser, Denoiser, shape=list(data.shape), num_classes=data.num_classes)
    denoiser.fit(data.statistics(denoiser.num_classes))
    denoiser.to(device)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    k, labels = next(iter(data.batches("train")))
    x0, noise = data.to_model(k), build(request.noise)
    sigma, eps = noise(len(x0), x0.device), torch.randn_like(x0)
    x0, labels, sigma, eps = (t.to(device) for t in (x0, labels, sigma, eps))
    loss = build(request.loss)
    terms = compile_loss(loss, denoiser) if compiled else loss
    optimizer = torch.optim.AdamW(denoiser.parameters(), fused=True)

    def step() -> None:
        terms(denoiser, x0, labels, sigma, eps)["loss"].mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    def without_tape(work: Callable[..., Tensor]) -> Work:
        x = x0 + sigma.view(-1, *[1] * (x0.dim() - 1)) * eps
        return torch.no_grad()(lambda: work(x, sigma, labels))

    if not denoiser.has_density:
        return Contender(name, loss_name, step, None, None)
    density: Any = denoiser
    return Contender(name, loss_name, step, without_tape(density.log_prob), without_tape(density.score))


def seconds(work: Work, device: torch.device) -> float:
    """Of one call."""
    if device.type == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure(contenders: Sequence[Contender], rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """A row for each, timed in turn beside the matrix product."""
    a, b = (torch.randn(SIDE, SIDE, device=device) for _ in range(2))
    works: list[Work] = [lambda: torch.mm(a, b)]
    works += [w for c in contenders for w in (c.step, c.log_prob, c.score) if w is not None]
    found: dict[int, list[float]] = {id(work): [] for work in works}
    for work in works:
        work()
    for _ in range(rounds):
        for work in works:
            found[id(work)].append(seconds(work, device))
    rate = 2 * SIDE**3 / min(found[id(works[0])])
    rows = []
    for c in contenders:
        gflop, fastest = count_flop(c.step) / 1e9, min(found[id(c.step)])
        score = None if c.score is None else min(found[id(c.score)])
        rows.append(
            {
                "name": c.name,
                "loss": c.loss,
                "ms": [1e3 * each for each in Spread.of(found[id(c.step)])],
                "gflop": gflop,
                "share": 1e9 * gflop / fastest / rate,
                "calls": count_calls(c.step),
                "score": None if score is None else score / min(found[id(c.log_prob)]),
                "score_of_step": None if score is None else score / fastest,
                "kept": count_kept(c.step),
                "rate": rate / 1e9,
            }
        )
    return rows


def main(words: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser("python -m experiments.speed", description=__doc__)
    parser.add_argument("--dataset", default="digits", choices=("digits", "mnist"))
    parser.add_argument("--models", default=",".join([*flow_names(), "unet"]), help="some of them, as coupling,unet")
    parser.add_argument("--losses", default=",".join(LOSSES), help="some of likelihood,mixture; a U-Net has denoising")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--compile", action="store_true", help="steps by torch.compile")
    parser.add_argument("--name", default="speed", help="of the files")
    given = parser.parse_args(words)
    device = torch.device(given.device)
    torch.set_num_threads(1)
    rows = []
    for name in given.models.split(","):  # one at a time in memory; the product is timed beside each
        losses = ("denoising",) if name == "unet" else given.losses.split(",")
        contenders = [build_contender(name, loss, given.dataset, device, given.compile) for loss in losses]
        rows += measure(contenders, given.rounds, device)
        print(to_markdown(COLUMNS, rows[-len(losses) :]), flush=True)
    out = OUT / given.device
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{given.name}-{given.dataset}.json"
    write_json(file, {"machine": describe_machine(), "rounds": given.rounds, "rows": rows})
    write_text(file.with_suffix(".md"), to_markdown(COLUMNS, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
