"""What compile=true brings an evaluation: seconds of its likelihoods, eager and compiled, on the whole test split.

log p             values of log p that the metric asks for: one an image, and one for each class and level
s                 of the metric
× compiled        eager seconds over compiled ones, in the same round
s to make         seconds of CPU, a C++ compiler's apart, of the first compiled bits_per_dim: a
                  minute where nothing of it is on disk, seconds where it is (TORCHINDUCTOR_CACHE_DIR says where)
"""

import resource
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from experiments.common.columns import Column, Row
from experiments.common.spread import Spread
from experiments.speed.models import build_model
from experiments.speed.steps import spread
from experiments.speed.timing import Work, ratio, time_in_turn
from flowdiff.commands.train import request_of
from flowdiff.data.base import ImageData, read_data
from flowdiff.metrics import BitsPerDim, ClassPosterior
from flowdiff.metrics.base import Evaluand, Metric
from flowdiff.model.construction import build

METRICS: dict[str, Metric] = {
    "bits_per_dim": BitsPerDim(),
    "class_posterior": ClassPosterior([0.05, 0.2, 0.5, 1, 2, 5]),
}
COLUMNS = (
    Column("name", "flow", lambda row: row["name"]),
    Column("metric", "metric", lambda row: row["metric"]),
    Column("log_probs", "log p", lambda row: row["log_probs"], "{:,}"),
    spread("eager", "s, eager"),
    spread("compiled", "s, compiled"),
    spread("speed_up", "× compiled", "{:.2f}"),
    Column("making", "s to make", lambda row: row["making"], "{:.0f}"),
    Column("compiling", "of the compiler", lambda row: row["compiling"], "{:.0f}"),
)


def measure(names: Sequence[str], dataset: str, rounds: int, say: Callable[[Row], None]) -> list[Row]:
    """A row for each flow that can be one graph and each metric; `say` is given each at once."""
    rows = []
    data = read_data(build(request_of(f"experiment={dataset}", "run_dir=.").dataset))
    for name in names:
        denoiser = build_model(name, "likelihood", dataset, torch.device("cpu")).denoiser.eval()
        if denoiser.has_density and not denoiser.uncompilable:
            for row in measure_one(denoiser, data, rounds):
                rows.append({"name": name} | row)
                say(rows[-1])
    return rows


@torch.no_grad()
def measure_one(denoiser: torch.nn.Module, data: ImageData, rounds: int) -> list[Row]:
    """The metrics of one model. What making it costs stands beside the first."""
    ways = {"eager": Evaluand(denoiser, data), "compiled": Evaluand(denoiser, data, compile=True)}
    rows, start = [], _cpu_seconds()
    METRICS["bits_per_dim"](ways["compiled"])
    made: Row = dict(
        zip(("making", "compiling"), (b - a for a, b in zip(start, _cpu_seconds(), strict=True)), strict=True)
    )
    for name, metric in METRICS.items():
        works: dict[str, Work] = {way: partial(metric, model) for way, model in ways.items()}
        found = time_in_turn(works, rounds, torch.device("cpu"))
        results = metric(ways["eager"])
        n = sum(result.n * result.conditions.get("classes", 1) for result in results.values())
        speed_up = ratio(found["eager"], found["compiled"])
        rows.append({"metric": name, "log_probs": n, "speed_up": speed_up, **made})
        rows[-1] |= {way: Spread.of(taken) for way, taken in found.items()}
        made = {"making": None, "compiling": None}
    return rows


def _cpu_seconds() -> tuple[float, float]:
    """Of this process, and of those that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time(), children.ru_utime + children.ru_stime
