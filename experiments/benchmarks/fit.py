"""Training and measuring of one peer, in a process of its own.   python -m experiments.benchmarks.fit FOLDER

FOLDER holds request.json (dataset, seconds, seed and the peer's entry in contenders.yaml) and takes result.json.
The data are those of the run `flowdiff.train experiment=<dataset>`: its splits, its batches, its dequantisation, and
σ_min-noise on top, with which ours are trained too. The loop is the plain one: maximum likelihood, the peer's own
optimiser, a cosine over the elapsed share of the budget,

    lr(t) = lr · (1 + cos(π t / seconds)) / 2,    t the seconds of training so far,

and the weights of the best validation bits per dimension are kept. Validation doesn't count as training. A step whose
loss or gradient is not finite is left out, as in normflows' example, and counted.
"""

import copy
import json
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor
from torch.optim import Optimizer

from experiments.benchmarks.peers import Peer
from flowdiff.commands.train import request_of
from flowdiff.data.base import ImageData, read_data
from flowdiff.errors import FlowdiffError, one_line
from flowdiff.files import write_json
from flowdiff.metrics.base import Evaluand, Metric, measure
from flowdiff.metrics.frechet import FrechetDistance, Recognised
from flowdiff.metrics.likelihood import BitsPerDim
from flowdiff.model.construction import build
from flowdiff.samplers.batched import Drawn

VALIDATIONS = 12


@dataclass
class Sampler:
    """`sample(n, labels, seed)` of an evaluand; it keeps the time."""

    peer: Peer
    batch_size: int = 500
    seconds_per_100: float = math.nan

    def __call__(self, n: int, labels: Tensor | None, seed: int) -> Drawn:
        torch.manual_seed(seed)
        start, parts = time.perf_counter(), []
        for i in range(0, n, self.batch_size):
            rows = slice(i, min(i + self.batch_size, n))
            parts.append(self.peer.sample(rows.stop - i, None if labels is None else labels[rows]))
        self.seconds_per_100 = 100 * (time.perf_counter() - start) / n
        return Drawn(torch.cat(parts).detach().cpu(), conditions={"sampler": "inverse", "nfe": self.peer.passes})


def batches(data: ImageData, sigma_min: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Training batches without end: x0 + σ_min·ε (B, *shape), x0 dequantised anew, and labels (B,)."""
    loader = data.batches("train")
    while True:
        for k, labels in loader:
            x = data.to_model(k)
            yield x + sigma_min * torch.randn_like(x), labels


def fit(
    peer: Peer,
    data: ImageData,
    sigma_min: float,
    seconds: float,
    optimizer: Callable[..., Optimizer],
    clip: float | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Train for a number of seconds; the peer ends in eval mode with its best weights.

    Args:
        peer: the model.
        data: the dataset, loaded.
        sigma_min: standard deviation of the noise on the images.
        seconds: of training.
        optimizer: makes the optimiser of some parameters.
        clip: the gradient's norm is held to it; None: it is not.
        seed: of all noise.

    Returns:
        `seconds`, `steps`, `images_per_second`, `left_out` (steps) and `validation` (best bits/dim).

    Raises:
        FlowdiffError: no validation was finite.
    """
    torch.manual_seed(seed)
    peer.standardise(data, sigma_min)
    optimiser = optimizer(peer.parameters())
    lr = optimiser.param_groups[0]["lr"]
    spent, steps, images, left_out, best = 0.0, 0, 0, 0, math.inf
    kept = copy.deepcopy(peer.state_dict())
    stream, validations = batches(data, sigma_min), 0
    while spent < seconds:
        start = time.perf_counter()
        peer.train()
        for group in optimiser.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * spent / seconds))
        x, labels = next(stream)
        optimiser.zero_grad()
        loss = -peer.log_prob(x, sigma_min, labels if peer.num_classes else None).mean() / peer.dim
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(peer.parameters(), math.inf if clip is None else clip)
        if torch.isfinite(loss) and torch.isfinite(norm):
            optimiser.step()
        else:
            left_out += 1
        steps, images, spent = steps + 1, images + len(x), spent + time.perf_counter() - start
        if spent * VALIDATIONS >= seconds * (validations + 1):
            validations = int(spent * VALIDATIONS / seconds)
            bits = measured({"bits": BitsPerDim()}, evaluand(peer, data, sigma_min, seed, "val"))["bits_per_dim"]
            if bits["value"] is not None and bits["value"] < best:
                best, kept = bits["value"], copy.deepcopy(peer.state_dict())
            print(
                f"{spent:.0f} s  step {steps}  loss {loss.item():.4g}  validation bits/dim {bits['value']}", flush=True
            )
    if best == math.inf:
        raise FlowdiffError(f"no finite likelihood of the validation split in {steps} steps ({left_out} left out)")
    peer.load_state_dict(kept)
    peer.eval()
    speed = {"seconds": spent, "steps": steps, "images_per_second": images / spent}
    return speed | {"left_out": left_out, "validation": best}


def evaluand(
    peer: Peer, data: ImageData, sigma_min: float, seed: int, split: str = "test", sample: Sampler | None = None
) -> Evaluand:
    """A peer as flowdiff's metrics take a model, in eval mode."""
    peer.eval()
    return Evaluand(peer, data, None, sample, sigma_min, weights="raw", seed=seed, split=split)


def measured(metrics: dict[str, Metric], model: Evaluand) -> dict[str, dict[str, Any]]:
    """Metrics by their key in metrics.json."""
    return {key: result.to_json() for key, result in measure(metrics, model)[0].items()}


def main(folder: Path) -> dict[str, Any]:
    """Train and measure what request.json asks for; returns what is in result.json."""
    request = json.loads((folder / "request.json").read_text())
    entry, seed = request["settings"], int(request["seed"])
    ours = request_of(f"experiment={request['dataset']}", f"seed={seed}")
    sigma_min, data = ours.sigma_min, read_data(build(ours.dataset))
    torch.manual_seed(seed)
    classes = data.num_classes if entry["given_class"] else 0
    peer = instantiate(entry["model"], shape=data.shape, num_classes=classes, _convert_="all")
    result: dict[str, Any] = {
        "given_class": bool(classes),
        "parameters": sum(p.numel() for p in peer.parameters() if p.requires_grad),
    }
    optimizer = instantiate(entry["optimizer"], _convert_="all")
    result |= fit(peer, data, sigma_min, float(request["seconds"]), optimizer, entry.get("clip"), seed)
    sampler = Sampler(peer)
    model = evaluand(peer, data, sigma_min, seed, sample=sampler)
    result["metrics"] = measured({"bits_per_dim": BitsPerDim()}, model)
    try:
        result["metrics"] |= measured({"fd": FrechetDistance(), "recognised": Recognised()}, model)
        result["seconds_per_100"] = sampler.seconds_per_100
    except (RuntimeError, AssertionError, ValueError) as error:  # an inverse that breaks down: the likelihood stands
        result["note"] = f"no samples: {type(error).__name__}: {one_line(error)}"
    write_json(folder / "result.json", result)
    return result


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except Exception as error:
        traceback.print_exc()
        sys.exit(one_line(error))
