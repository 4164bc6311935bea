r"""Inpainting and super-resolution: several completions of each image, judged against the truth.

Both sample Q x given P x for an orthogonal projector P (`samplers.conditional`), and both are measured by

    mse = |Q (x - x0)|^2 / dim Q             in units of [-1, 1], over what was missing

of a completion and of the mean of an image's completions. A perfect sampler's completion has twice the posterior
variance as mse, the mean of K has (1 + 1/K) times it. The yardstick is the mean training image: Q m in place of Q x.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from flowdiff.data.base import ImageData
from flowdiff.data.labels import resolve_labels
from flowdiff.data.quantise import centres
from flowdiff.errors import ConfigError
from flowdiff.model.api import Model
from flowdiff.options import Range, Steps, checked
from flowdiff.samplers.batched import BatchedSampler
from flowdiff.samplers.completion import Completed, complete, first_seeds
from flowdiff.samplers.conditional import BlockMean, Known, Mask
from flowdiff.samplers.masks import missing_pixels
from flowdiff.tasks.base import Chosen, Request, Task, TaskResult, choose_images

Completions = Annotated[int, Range(1, 1000)]
Correctors = Annotated[int, Range(0, 1000)]


class Restore(Task):
    """Completes images of the dataset. A subclass says what is known of them.

    Args:
        completions: of each image.
        n_corrector: Metropolis-adjusted Langevin steps at each noise level; 0 is replacement alone.
        num_steps: of the ancestral steps in place of a sampler that begins at `sigma_start`; None: 64.
        split: train, val or test.
        index: which images: the number of the first, or a list; None: the first ones.
    """

    @checked
    def __init__(
        self,
        completions: Completions,
        n_corrector: Correctors,
        num_steps: Steps | None = None,
        split: Literal["train", "val", "test"] = "test",
        index: int | Sequence[int] | None = None,
    ) -> None:
        self.completions = completions
        self.n_corrector = n_corrector
        self.num_steps = num_steps
        self.split = split
        self.index = index

    def known(self, x0: Tensor, seeds: Tensor) -> Known:
        """What is known of the images x0 (n, C, H, W); random choices follow from the seeds (n,)."""
        raise NotImplementedError

    def __call__(self, model: Model, batched: BatchedSampler, request: Request) -> TaskResult:
        self.need_pixels(model)
        images = choose_images(request, model, self.split, self.index, self.rows)
        n, m = len(images.x), self.completions
        known = self.known(images.x, first_seeds(request.seed, n, m))
        labels = images.labels if model.num_classes else None
        if request.class_label is not None:
            labels = resolve_labels(request.class_label, n, model.num_classes, names=model.class_names)
        steps, key = self.num_steps, "task.n_corrector"
        done = complete(batched, known, images.x, labels, m, request.seed, self.n_corrector, steps, key=key)
        x = done.drawn.x
        measured = self._settings(images) | _acceptance(done) | _errors(x, images, known, request.data(), m)
        if model.has_density:
            measured |= _log_probs(model, batched, x, images.x, done.labels, labels)
        blank = known.project(images.x)
        rows = [images.x[:, None], blank[:, None], x.unflatten(0, (n, m))]
        columns = ["original", "known", *(f"completion {i + 1}" for i in range(m))]
        return TaskResult(
            drawn=done.drawn,
            x=x,
            labels=done.labels,
            seeds=done.seeds,
            picture=torch.cat(rows, 1).flatten(0, 1),
            columns=columns,
            measured=measured,
            report=_report(measured),
            arrays={"originals": model.to_uint8(images.x), "index": images.index} | self._arrays(known, blank),
        )

    def _settings(self, images: Chosen) -> dict[str, Any]:
        return {
            "split": self.split,
            "index": images.index.tolist(),
            "completions": self.completions,
            "n_corrector": self.n_corrector,
        }

    def _arrays(self, known: Known, blank: Tensor) -> dict[str, Tensor]:
        """For samples.npz: what was known of the images, `blank` being its projection."""
        return {"known": blank}


class Inpaint(Restore):
    """Some pixels are missing.

    Args:
        mask: what is missing: a name, `random:P` or a file (`samplers.masks`); None is `left`.
        completions, n_corrector, num_steps, split, index: see `Restore`.
    """

    @checked
    def __init__(self, mask: str | None, completions: Completions, n_corrector: Correctors, **which: Any) -> None:
        super().__init__(completions, n_corrector, **which)
        self.mask = "left" if mask is None else mask

    def known(self, x0: Tensor, seeds: Tensor) -> Known:
        return Mask(missing_pixels(self.mask, tuple(x0.shape[1:]), seeds))

    def _settings(self, images: Chosen) -> dict[str, Any]:
        return {"mask": self.mask} | super()._settings(images)

    def _arrays(self, known: Known, blank: Tensor) -> dict[str, Tensor]:
        assert isinstance(known, Mask)
        return {"missing": known.missing}


class SuperResolution(Restore):
    """The mean of every block of factor x factor pixels is known.

    Args:
        factor: how many times larger the image becomes, at least 2; divides its height and width.
        completions, n_corrector, num_steps, split, index: see `Restore`.
    """

    @checked
    def __init__(
        self,
        factor: Annotated[int, Range(2, 64)],
        completions: Completions,
        n_corrector: Correctors,
        **which: Any,
    ) -> None:
        super().__init__(completions, n_corrector, **which)
        self.factor = factor

    def known(self, x0: Tensor, seeds: Tensor) -> Known:
        height, width = x0.shape[2:]
        if height % self.factor or width % self.factor:
            allowed = f"must divide the image's height and width, {height} x {width}"
            raise ConfigError("task.factor", self.factor, allowed)
        return BlockMean(self.factor)

    def _settings(self, images: Chosen) -> dict[str, Any]:
        return {"factor": self.factor} | super()._settings(images)


def _acceptance(done: Completed) -> dict[str, Any]:
    """The share of Langevin steps accepted, in all and by level."""
    rates = done.acceptance
    if rates is None:
        return {}
    by_level = {f"{sigma:.4g}": float(r) for sigma, r in zip(done.sigmas.tolist(), rates.mean(0), strict=True)}
    return {"acceptance": float(rates.mean()), "acceptance_by_sigma": by_level}


def _errors(x: Tensor, images: Chosen, known: Known, data: ImageData, completions: int) -> dict[str, float]:
    """Mean squares over what is missing."""
    k, labels = data.images("train")
    free = known.free(images.x)

    def mse(other: Tensor) -> float:
        """Of one proposal for each image, (n, C, H, W) or (1, C, H, W)."""
        return float((known.rest(other - images.x).square().flatten(1).sum(1) / free).mean())

    each = x.unflatten(0, (len(images.x), completions))
    found = {
        "mse": sum(mse(each[:, i]) for i in range(completions)) / completions,
        "mse_of_mean": mse(each.mean(1)),
        "mse_mean_image": mse(_mean_image(k, data)),
    }
    if data.num_classes:
        of_class = {int(c): _mean_image(k[labels == c], data) for c in images.labels.unique()}
        found["mse_class_mean"] = mse(torch.cat([of_class[int(c)] for c in images.labels]))
    return found


def _mean_image(k: Tensor, data: ImageData) -> Tensor:
    """(1, C, H, W) in [-1, 1]."""
    assert data.levels is not None
    return centres(k.mean(0, keepdim=True, dtype=torch.float32), data.levels)


@torch.no_grad()
def _log_probs(
    model: Model, batched: BatchedSampler, x: Tensor, x0: Tensor, own: Tensor | None, labels: Tensor | None
) -> dict[str, Any]:
    """Mean log p at sigma_min, in nats, of the completions and of the originals."""
    device = next(model.parameters()).device
    sigma = float(batched.schedule.sigma_min)

    def mean(x: Tensor, labels: Tensor | None) -> float:
        found = []
        for rows in torch.arange(len(x)).split(batched.batch_size):
            classes = None if labels is None else labels[rows].to(device)
            found.append(model.log_prob(x[rows].to(device), sigma, classes).cpu())
        return float(torch.cat(found).mean())

    return {"log_prob": mean(x, own), "log_prob_original": mean(x0, labels), "log_prob_sigma": sigma}


def _report(measured: dict[str, Any]) -> list[str]:
    class_mean = f", class mean {measured['mse_class_mean']:.4g}" if "mse_class_mean" in measured else ""
    lines = [
        f"mse of what was missing: {measured['mse']:.4g} a completion, {measured['mse_of_mean']:.4g} the mean of "
        f"{measured['completions']}; mean training image {measured['mse_mean_image']:.4g}{class_mean}"
    ]
    if "log_prob" in measured:
        lines.append(
            f"log p at sigma {measured['log_prob_sigma']:g}: {measured['log_prob']:.1f} nats completed, "
            f"{measured['log_prob_original']:.1f} original"
        )
    if "acceptance" in measured:
        lines.append(
            f"accepted: {100 * measured['acceptance']:.1f} % of {measured['n_corrector']} Langevin steps a level"
        )
    return lines
