"""What has a known best denoiser D*, and draws images for it: digits' mixture of Gaussians, or a trained U-Net."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.common.configurations import train
from experiments.denoising_gap.mixture import ClassMixture
from flowdiff.commands.train import request_of
from flowdiff.data.base import ImageData, read_data
from flowdiff.data.statistics import DataStatistics
from flowdiff.denoisers.base import Denoiser
from flowdiff.model import api
from flowdiff.model.construction import build
from flowdiff.tensors import per_sample

FITTED = 50_000  # drawn images whose moments stand for those of the mixture
HELD_OUT = 2_000
UNET = ("denoiser=unet", "loss=denoising", "augment=none", "dropout=0", "lr=1e-3", "callbacks=minimal")
UNET_STEPS = ("trainer.max_steps=1200", "trainer.val_check_interval=300")
Images = tuple[Tensor, Tensor]


class Truth:
    """Base of both. A subclass gives `draw`, `denoise`, `statistics` and `held_out`.

    Attributes:
        shape: of an image.
        num_classes: K.
        is_limited: the images to train on are a limited number, before they are augmented.
    """

    shape: tuple[int, ...]
    num_classes: int
    is_limited = False

    def draw(self, n: int) -> Images:
        """x0 (n, *shape) and labels (n,) to train on, by torch's global generator."""
        raise NotImplementedError

    def denoise(self, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        """D*(x; σ, c), shape of x; σ and labels (B,)."""
        raise NotImplementedError

    def statistics(self) -> DataStatistics:
        """Moments of what is trained on."""
        raise NotImplementedError

    def held_out(self) -> Images:
        """Images to measure on, by torch's global generator."""
        raise NotImplementedError


class MixtureTruth(Truth):
    """The mixture of Gaussians fitted to a data set.

    Args:
        data: the data set.
        images: how many there are to train on; None: without limit. As of pixels with levels, a part of each image's
            variance, dequantisation's, is drawn anew whenever it is shown.
    """

    def __init__(self, data: ImageData, images: int | None = None) -> None:
        self.shape, self.num_classes = data.shape, data.num_classes
        exact = ClassMixture.of_images(data)
        self.mixture, self.noise_variance = exact.to(torch.float32), data.measured_rows()[2]
        self.is_limited = images is not None
        self.images = None if images is None else self.mixture.sample(images, self.noise_variance)

    def draw(self, n: int) -> Images:
        if self.images is None:
            x0, labels = self.mixture.sample(n)
            return x0.reshape(n, *self.shape), labels
        rows = torch.randint(len(self.images[0]), (n,))
        x0, labels = (of_all[rows] for of_all in self.images)
        return (x0 + self.noise_variance**0.5 * torch.randn_like(x0)).reshape(n, *self.shape), labels

    def denoise(self, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        return self.mixture.denoise(x.flatten(1), sigma, labels).reshape(x.shape)

    def statistics(self) -> DataStatistics:
        noise_variance = 0.0 if self.images is None else self.noise_variance
        x0, labels = self.mixture.sample(FITTED) if self.images is None else self.images
        return DataStatistics.from_data(x0, labels, self.num_classes, noise_variance)

    def held_out(self) -> Images:
        x0, labels = self.mixture.sample(HELD_OUT)
        return x0.reshape(-1, *self.shape), labels


class UNetTruth(Truth):
    """A U-Net that was trained on a data set; images to train on are its training split's, augmented without limit.

    Args:
        data: the data set.
        denoiser: the U-Net.
    """

    def __init__(self, data: ImageData, denoiser: Denoiser) -> None:
        self.shape, self.num_classes, self.data, self.denoiser = data.shape, data.num_classes, data, denoiser
        self.is_limited = True
        augmentation: Any = build(request_of("augment=affine").augment)
        self.augmentation = augmentation(context_dim=1)

    @classmethod
    def trained(cls, data: ImageData, run: Path) -> "UNetTruth":
        """The U-Net of a run folder, trained first where there is none."""
        return cls(data, trained([*UNET, *UNET_STEPS], run).denoiser)

    def draw(self, n: int) -> Images:
        assert self.data.levels is not None
        k, labels = self.data.images("train")
        rows = torch.randint(len(k), (n,))
        return self.data.to_model(self.augmentation.change(k[rows], self.data.levels)[0]), labels[rows]

    @torch.no_grad()
    def denoise(self, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        return self.denoiser(x, sigma, labels)

    def statistics(self) -> DataStatistics:
        return self.data.statistics(self.num_classes)

    def held_out(self) -> Images:
        """The test split as often as HELD_OUT asks for."""
        k, labels = self.data.images("test")
        times = HELD_OUT // len(k)
        return self.data.to_model(k.repeat(times, 1, 1, 1)), labels.repeat(times)


def trained(words: list[str], run: Path) -> api.Model:
    """The best checkpoint of `python -m flowdiff.train WORDS` in a run folder, trained first where there is none."""
    checkpoint = run / "checkpoints" / "best.ckpt"
    if not (run / "metrics.json").is_file():
        train([*words, f"run_dir={run}"], words)
    return api.load(checkpoint)


def digits() -> ImageData:
    """The data of both."""
    return read_data(build(request_of().dataset))


def noised(truth: Truth, sigma: float, trained_on: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x = x0 + σε with x0, σ (N,) and labels, the same for every model.

    Args:
        truth: draws x0.
        sigma: σ.
        trained_on: of images as they are trained on, not of held-out ones.
    """
    with torch.random.fork_rng():
        torch.manual_seed(1_000_000)
        x0, labels = truth.draw(HELD_OUT) if trained_on else truth.held_out()
        levels = torch.full((len(x0),), sigma)
        return x0 + per_sample(levels, x0) * torch.randn_like(x0), x0, levels, labels
