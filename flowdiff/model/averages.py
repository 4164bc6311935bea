r"""Averages of the weights θ of a length that is chosen after the training (Karras et al. 2024, arXiv:2312.02696).

    θ̄_γ(t) = ∫₀ᵗ p_{γ,t}(τ) θ(τ) dτ,    p_{γ,t}(τ) = (γ + 1) τ^γ / t^{γ+1}
    θ̄_γ(t) = β θ̄_γ(t − 1) + (1 − β) θ(t),    β = (1 − 1/t)^{γ+1}        exactly that, in steps

Its length is the standard deviation of p as a share of t, σ_rel = √((γ + 1)/(γ + 3))/(γ + 2). A training keeps two of
them (`training.callbacks.PowerAverages`) and writes both down from time to time. Of those p_i, and of the two in a
checkpoint, the average of any length at the checkpoint's step is a sum Σ x_i θ̄_i, x by least squares: A x = b with

    A_ij = ⟨p_i, p_j⟩,    b_i = ⟨p_i, p⟩,    ⟨p_{γ,s}, p_{δ,t}⟩ = (γ + 1)(δ + 1)(s/t)^δ / ((γ + δ + 1) t)    for s ≤ t.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from flowdiff.errors import FlowdiffError
from flowdiff.files import write_whole
from flowdiff.model.reading import read_safetensors

FOLDER = "averages"  # in a run's folder
KEY = "power_averages"  # of a callback's state in a checkpoint
LENGTHS = (0.01, 0.25)  # from the least to the greatest that makes sense
TOLERANCE = 0.05  # of the L2 norm of p, that a sum of others may differ from it by
FILE = re.compile(r"step-(\d{1,12})\.safetensors")

Averages = Mapping[str, Mapping[str, Tensor]]
"""By length (`0.05`) the averages of the weights, by their names."""


class Profile(NamedTuple):
    """p of one average."""

    step: float
    exponent: float


def exponent(length: float) -> float:
    """γ of a length: the largest root of γ³ + 7γ² + (16 − σ⁻²)γ + 12 − σ⁻²."""
    inverse = length**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def keep(step: int, gamma: float) -> float:
    """β: the share of an average that is kept at step t = 1, 2, …"""
    return float((1 - 1 / step) ** (gamma + 1))


def inner(one: Profile, other: Profile) -> float:
    """⟨p, q⟩ of two profiles."""
    (s, a), (t, b) = sorted((one, other))
    return (a + 1) * (b + 1) * (s / t) ** b / ((a + b + 1) * t)


def combine(given: list[Profile], wanted: Profile) -> tuple[list[float], float]:
    """The x, of sum 1, with which Σ x_i p_i is nearest to p, and by what share of p's norm they differ."""
    a = np.array([[inner(one, other) for other in given] for one in given])
    b = np.array([inner(one, wanted) for one in given])
    x = np.linalg.lstsq(a, b, rcond=1e-12)[0]
    x = x / x.sum()
    square = inner(wanted, wanted)
    return x.tolist(), math.sqrt(max(0.0, x @ a @ x - 2 * b @ x + square) / square)


def snapshot(folder: Path, step: int) -> Path:
    """The file of the averages at a step."""
    return folder / f"step-{step:06d}.safetensors"


def snapshots(folder: Path) -> dict[int, Path]:
    """The files of a folder by their steps."""
    found = [(FILE.fullmatch(path.name), path) for path in folder.glob("step-*.safetensors")]
    return {int(match[1]): path for match, path in sorted(found, key=lambda pair: pair[1].name) if match}


def average_of(content: Mapping[str, Any], folder: Path, length: float) -> dict[str, Tensor]:
    """The trained weights of a checkpoint, averaged over a length.

    Args:
        content: the checkpoint's.
        folder: of its run's snapshots.
        length: σ_rel.

    Raises:
        FlowdiffError: the run kept no averages, or too few for this length; a snapshot is not of this model.
    """
    low, high = LENGTHS
    if not low <= length <= high:
        raise FlowdiffError(f"weights=ema:{length:g}: the length of an average is from {low:g} to {high:g}")
    own, step = find_averages(content), int(content["global_step"])
    files = {at: path for at, path in snapshots(folder).items() if 0 < at < step}
    gammas = [exponent(float(each)) for each in own]
    given = [Profile(at, gamma) for at in (*files, step) for gamma in gammas]
    shares, error = combine(given, Profile(step, exponent(length)))
    if error > TOLERANCE:
        why = f"the {len(files)} snapshots before step {step} in {folder} leave {error:.0%} of it out"
        raise FlowdiffError(f"weights=ema:{length:g}: {why}; more snapshots, or a length near {' or '.join(own)}")
    remaining = iter(shares)
    total: dict[str, Tensor] = {}
    for path in (*files.values(), None):
        for average in (own if path is None else read_snapshot(path, own)).values():
            share = next(remaining)
            for name, tensor in average.items():
                sum_of_them = total.setdefault(name, torch.zeros(tensor.shape))
                sum_of_them.add_(tensor.float(), alpha=share)
    return total


def find_averages(content: Mapping[str, Any]) -> Averages:
    """The averages that a checkpoint holds, by length and name.

    Raises:
        FlowdiffError: it holds none, or something else.
    """
    found: Any = next((state[KEY] for state in (content.get("callbacks") or {}).values() if KEY in state), None)
    if found is None:
        raise FlowdiffError("its run kept no averages of which others are made: it takes callbacks=averages")
    right = isinstance(found, dict) and 0 < len(found) <= 10 and all(map(_is_length, found))
    if not (right and all(map(_is_average, found.values())) and len({_shapes(each) for each in found.values()}) == 1):
        raise FlowdiffError("damaged or foreign: its averages are not weights by lengths")
    return found


def _is_length(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"0\.\d{1,6}", value) is not None and float(value) > 0


def _is_average(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(n, str) and isinstance(t, Tensor) for n, t in value.items())


def _shapes(average: Mapping[str, Tensor]) -> frozenset[tuple[str, torch.Size]]:
    return frozenset((name, tensor.shape) for name, tensor in average.items())


def write_snapshot(averages: Averages, path: Path) -> None:
    """The averages as a file of half precision."""
    tensors = {f"{length}/{n}": t.half().contiguous() for length, each in averages.items() for n, t in each.items()}
    write_whole(path, lambda out: out.write(save(tensors)))


def read_snapshot(path: Path, like: Averages) -> dict[str, dict[str, Tensor]]:
    """What `write_snapshot` wrote, of the lengths and weights of other averages.

    Raises:
        FlowdiffError: it is of others.
    """
    try:
        tensors = read_safetensors(path)
        found = {length: {name: tensors.pop(f"{length}/{name}") for name in each} for length, each in like.items()}
        if tensors or any(_shapes(found[length]) != _shapes(like[length]) for length in like):
            raise FlowdiffError("not of this run")
    except (FlowdiffError, KeyError) as error:
        why = "not of this run" if isinstance(error, KeyError) else error
        raise FlowdiffError(f"its snapshot {path}: {why}") from error
    return found
