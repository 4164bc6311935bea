r"""A model that is trained towards a known D*, for a number of CPU seconds.

    i      1,257 images, drawn once         the package's loss
    ii     images without limit             the package's loss
    iii    images without limit             the package's loss with D*(x) in the place of x0

What is asked for in (iii) is λ(σ)·|D(x) − D*(x)|²/d, beside the likelihood of x where the loss has that:
x0 := D*(x) and ε := (x − D*(x))/σ are the images and noise that make the same x. What a step takes is told by the
process's own clock; the drawing of images and the targets are not counted. AdamW, clipping and the average of the
weights are the package's; the learning rate warms up for 100 steps and falls by half a cosine to 0 at the last second,
so that the measurement before it is of a training that isn't at its end. All is measured with the averaged weights:

    excess/σ = E|D − D*|² / E|D* − x0|²,        so that the RMSE of D is that of D* times (1 + excess)^½,

on held-out images, and on images as they are trained on, with other noise.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from experiments.common.results import Contender, Result
from experiments.denoising_gap.truths import MixtureTruth, Truth, UNetTruth, digits, noised
from flowdiff.commands.train import request_of
from flowdiff.denoisers.base import Denoiser, Perturbation
from flowdiff.errors import NonFiniteError
from flowdiff.model.construction import build
from flowdiff.objectives.losses import Loss, Noised
from flowdiff.objectives.noise import NoiseDistribution
from flowdiff.tensors import per_sample
from flowdiff.training.building import seed_all
from flowdiff.training.callbacks.average import Pairs
from flowdiff.training.request import TrainRequest

IMAGES = 1_257
BATCH = 128
HELD_OUT, TRAINED_ON = "held out", "trained on"
SIGMAS = (0.05, 0.2, 0.5, 1.0, 5.0)
COMMON = ("base=normal", "augment=none", "label_dropout=0")
MODELS = {
    "coupling": ("flow=coupling", "loss=mixture"),
    "jet": ("flow=jet", "loss=mixture"),
    "unet": ("denoiser=unet", "loss=denoising", "lr=1e-3"),
    "coupling-denoising": ("flow=coupling", "loss=denoising"),
}


@dataclass(frozen=True)
class Arm(Contender):
    """A model (`settings`), what it is given (`kind`: i, ii or iii) and by which truth (`dataset`)."""

    @classmethod
    def of(cls, model: str, kind: str, truth: str, seconds: float, seed: int) -> "Arm":
        """One of MODELS. Without an end of images nothing is dropped; with one the flows drop what suits them best."""
        dropout = 0.3 if kind == "i" and model != "unet" else 0
        words = [*MODELS[model], *COMMON, f"dropout={dropout}"]
        return cls(f"{truth}-{model}-{kind}", kind, words, truth, seconds, seed)

    def run(self, folder: Path, limit: float) -> Result:
        """Train and measure; `folder` and `limit` aren't used."""
        torch.set_num_threads(1)
        seed_all(self.seed)
        truth = find_truth(self.dataset, self.kind)
        training = Training(request_of(*self.settings), truth, self.kind == "iii", self.seconds)
        found: dict[str, Any] = {}
        for seconds in (self.seconds / 3, self.seconds):
            training.go_on(seconds)
            found[f"{seconds:g}"] = {"steps": training.steps} | measure(training.averaged, truth)
        parameters = sum(p.numel() for p in training.denoiser.parameters())
        return {"parameters": parameters, "steps": training.steps, "at": found}


@dataclass(frozen=True)
class Filter(Contender):
    """The Wiener filter of what a truth draws: what is known before the first step."""

    @classmethod
    def of(cls, truth: str) -> "Filter":
        """That of a truth."""
        return cls(f"{truth}-filter", "", [], truth, 0.0, 0)

    def run(self, folder: Path, limit: float) -> Result:
        """Measure; `folder` and `limit` aren't used."""
        seed_all(self.seed)
        truth = find_truth(self.dataset, self.kind)
        return {"at": {"0": measure(truth.statistics().wiener, truth)}}


def find_truth(name: str, kind: str) -> Truth:
    """By name: mixture or unet."""
    if name == "unet":
        return UNetTruth.trained(digits(), Path("outputs/denoising_gap/unet"))
    return MixtureTruth(digits(), IMAGES if kind == "i" else None)


class Training:
    """A training that is measured on its way.

    Args:
        request: the model, its loss, σ and optimiser.
        truth: draws images.
        by_target: train towards D* in the place of x0.
        seconds: of CPU, until the learning rate is 0.
    """

    def __init__(self, request: TrainRequest, truth: Truth, by_target: bool, seconds: float) -> None:
        self.request, self.truth, self.by_target, self.seconds = request, truth, by_target, seconds
        self.denoiser: Denoiser = build(
            request.denoiser, Denoiser, shape=list(truth.shape), num_classes=truth.num_classes
        )
        self.denoiser.fit(truth.statistics())
        self.loss: Loss = build(request.loss)
        self.noise: NoiseDistribution = build(request.noise)
        self.loss.check(self.denoiser)
        self.optimizer = torch.optim.AdamW(
            self.denoiser.parameters(), lr=request.lr, weight_decay=request.weight_decay, fused=True
        )
        self.average = AveragedModel(self.denoiser)
        self.pairs = Pairs(self.average, self.denoiser)
        self.batches = self._batches()
        self.steps, self.spent = 0, 0.0

    @property
    def averaged(self) -> Denoiser:
        """The model with the averaged weights."""
        module = self.average.module
        assert isinstance(module, Denoiser)
        return module

    def go_on(self, until: float) -> None:
        """Train until so many CPU seconds are spent."""
        while self.spent < until:
            batch = next(self.batches)
            start = time.process_time()
            self._step(batch)
            self.spent += time.process_time() - start

    def _batches(self) -> Iterator[Noised]:
        """What the loss takes; in (iii) D* and the noise that makes the same x of it."""
        given = Perturbation(dropout=self.request.dropout, probes="fresh")
        while True:
            x0, labels = self.truth.draw(BATCH)
            batch = Noised(x0, labels, self.noise(len(x0)), torch.randn_like(x0), given)
            yield towards(self.truth, batch) if self.by_target else batch

    def _step(self, batch: Noised) -> None:
        loss = self.loss.terms(self.denoiser, batch)["loss"].mean()
        if not loss.isfinite():
            raise NonFiniteError(f"the loss is not finite at step {self.steps + 1}")
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.denoiser.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.request.lr * self._lr_factor()
        self.optimizer.step()
        self.pairs.update(0.999)
        self.steps += 1

    def _lr_factor(self) -> float:
        """Linear warm-up in steps, then half a cosine down to 0 in seconds."""
        warm_up = min(1.0, (self.steps + 1) / self.request.warmup_steps)
        return warm_up * 0.5 * (1 + math.cos(math.pi * min(1.0, self.spent / self.seconds)))


def towards(truth: Truth, batch: Noised) -> Noised:
    """The same x as D* and the noise on it: x0 := D*(x), ε := (x − D*(x))/σ."""
    assert batch.labels is not None
    best = truth.denoise(batch.x, batch.sigma, batch.labels)
    return batch._replace(x0=best, eps=(batch.x - best) / per_sample(batch.sigma, best))


def measure(denoiser: Callable[..., Tensor], truth: Truth) -> dict[str, dict[str, float]]:
    """The excess by images and level, `excess/σ`: on those that are trained on too where they are a limited number."""
    split = (HELD_OUT, TRAINED_ON) if truth.is_limited else (HELD_OUT,)
    return {name: {f"excess/{s:g}": excess(denoiser, truth, s, name == TRAINED_ON) for s in SIGMAS} for name in split}


@torch.no_grad()
def excess(denoiser: Callable[..., Tensor], truth: Truth, sigma: float, trained_on: bool = False) -> float:
    """E|D − D*|² / E|D* − x0|² on held-out images, or such as are trained on."""
    x, x0, levels, labels = noised(truth, sigma, trained_on)
    error, least = 0.0, 0.0
    for rows in torch.arange(len(x)).split(500):
        given = x[rows], levels[rows], labels[rows]
        best = truth.denoise(*given)
        error += float((denoiser(*given) - best).double().square().sum())
        least += float((best - x0[rows]).double().square().sum())
    return error / least
