"""CIFAR-10 (Krizhevsky 2009): 60,000 colour images of 32×32 pixels in ten classes."""

from typing import Any

import torch
from torch import Tensor
from torchvision import datasets

from flowdiff.data.base import ImageData, Split, hold_out
from flowdiff.data.mnist import open_torchvision

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class CIFAR10(ImageData):
    """32×32 colour images, 256 levels: 45,000 train, 5,000 validation and 10,000 test images.

    Args:
        root: folder with torchvision's layout (``cifar-10-batches-py/…``).
        download: fetch the files into ``root`` if they are not there.
    """

    def __init__(self, root: str, download: bool = False, batch_size: int = 128, seed: int = 0) -> None:
        super().__init__(
            name="cifar10",
            shape=(3, 32, 32),
            num_classes=10,
            levels=256,
            batch_size=batch_size,
            seed=seed,
            class_names=NAMES,
        )
        self.root = root
        self.download = download

    def prepare_data(self) -> None:
        """Download in one process only, where that was asked for."""
        if self.download:
            self._open(train=True)

    def load(self) -> dict[str, Split]:
        """Read torchvision's files; 5,000 training images are held out for validation."""
        (k, y), test = self._tensors(train=True), self._tensors(train=False)
        train, val = hold_out(len(k), n_val=5000)
        return {"train": (k[train], y[train]), "val": (k[val], y[val]), "test": test}

    def _open(self, train: bool) -> Any:
        return open_torchvision(datasets.CIFAR10, "CIFAR10", self.root, train, self.download, "cifar-10-batches-py")

    def _tensors(self, train: bool) -> tuple[Tensor, Tensor]:
        data = self._open(train)
        return torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets)
