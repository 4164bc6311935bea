"""What a training step costs: every flow and the U-Net, by both losses, in every mode.

GFLOP             of matrix products, convolutions and attention in an eager step
share             of the rate of a matrix product, in the fastest eager step
calls             of ATen in an eager step
score / log p     seconds of a score over those of log p, both without a tape
score / step      and over those of an eager step
MB                kept for the backward pass
ms, mode          milliseconds of a step
× eager           seconds of an eager step over those of the mode, in the same round
s to make         seconds by the clock of the mode's first step
"""

import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from experiments.common.columns import Column, Row
from experiments.common.counting import count_calls, count_events, count_flop, count_kept
from experiments.common.spread import Spread
from experiments.speed.models import UNETS, Work, build_model, gradients_of
from experiments.speed.modes import MODES
from experiments.speed.timing import PRODUCT, build_references, milliseconds, ratio, reference_rates, time_in_turn

LOSSES = ("likelihood", "mixture")


def spread(key: str, heading: str, form: str = "") -> Column:
    """A column of three numbers, where they were measured."""
    return Column(key, heading, lambda row: Spread(*row[key]).text(form) if row.get(key) else None)


def columns_of(mode: str) -> tuple[Column, ...]:
    """Those of a mode other than eager."""
    return (
        spread(mode, f"ms, {mode}"),
        spread(f"{mode}_speed_up", "× eager", "{:.2f}"),
        Column(f"{mode}_making", "s to make", lambda row: row.get(f"{mode}_making"), "{:.0f}"),
    )


COLUMNS = (
    Column("name", "model", lambda row: row["name"]),
    Column("loss", "loss", lambda row: row["loss"]),
    Column("gflop", "GFLOP", lambda row: row["gflop"], "{:.3g}"),
    spread("eager", "ms a step"),
    Column("share", "share", lambda row: row["share"], "{:.1%}"),
    Column("peak", "of the peak", lambda row: row.get("peak"), "{:.1%}"),
    Column("calls", "calls", lambda row: row["calls"], "{:,}"),
    Column("events", "events", lambda row: row["events"], "{:,}"),
    Column("score", "score / log p", lambda row: row["score"], "{:.2f}"),
    Column("score_of_step", "score / step", lambda row: row["score_of_step"], "{:.2f}"),
    Column("kept", "MB", lambda row: row["kept"] / 1e6, "{:.0f}"),
    *(column for mode in MODES if mode != "eager" for column in columns_of(mode)),
)


def losses_of(name: str, losses: Sequence[str]) -> Sequence[str]:
    """Those that a model is trained by."""
    return ("denoising",) if name in UNETS else losses


def measure(
    names: Sequence[str],
    losses: Sequence[str],
    modes: Sequence[str],
    dataset: str,
    rounds: int,
    device: torch.device,
    say: Callable[[Row], None],
) -> list[Row]:
    """A row for each model and loss, one at a time in memory.

    Args:
        names: of flows and U-Nets.
        losses, modes: see above; eager is always measured.
        dataset, rounds, device: of all.
        say: is given each row at once.
    """
    rows = []
    for name in names:
        for loss in losses_of(name, losses):
            rows.append(measure_one(name, loss, [mode for mode in modes if mode != "eager"], dataset, rounds, device))
            say(rows[-1])
            gc.collect()
    return rows


def measure_one(
    name: str, loss: str, modes: Sequence[str], dataset: str, rounds: int, device: torch.device
) -> dict[str, Any]:
    """One row."""
    model = build_model(name, loss, dataset, device)
    eager = MODES["eager"](model)
    works: dict[str, Work] = {**build_references(device), "eager": eager}
    if model.denoiser.has_density:
        works |= {"log_prob": model.log_prob, "score": model.score}
    making = {}
    for mode in modes:
        works[mode] = MODES[mode](model)
        start = time.perf_counter()
        works[mode]()
        making[f"{mode}_making"] = time.perf_counter() - start
    found = time_in_turn(works, rounds, device)
    rates, gflop, fastest = reference_rates(found), count_flop(eager) / 1e9, min(found["eager"])
    row = {
        "name": name,
        "loss": loss,
        "gflop": gflop,
        "share": 1e9 * gflop / fastest / rates[PRODUCT],
        "peak": 1e9 * gflop / fastest / max(rates.values()),
        "calls": count_calls(eager),
        "events": count_events(gradients_of(model, model.loss)),
        "score": min(found["score"]) / min(found["log_prob"]) if "score" in found else None,
        "score_of_step": min(found["score"]) / fastest if "score" in found else None,
        "kept": count_kept(eager),
        "rates": {name: rate / 1e9 for name, rate in rates.items()},
    }
    times = {mode: milliseconds(found[mode]) for mode in ("eager", *modes)}
    return row | times | making | {f"{mode}_speed_up": ratio(found["eager"], found[mode]) for mode in modes}
