"""Datasets that torchvision downloads and reads: 10 classes, 256 levels, 5,000 training images held out."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowdiff.data.base import ImageData, Split
from flowdiff.errors import FlowdiffError
from flowdiff.files import is_file

LARGEST = 256 << 20  # bytes of a file


class TorchvisionData(ImageData):
    """Base of those datasets. A subclass gives what follows, and `tensors`.

    Attributes:
        title: name of the dataset in messages, and of its class in torchvision.datasets.
        folder: what should be below `root`.

    Args:
        root: folder with torchvision's layout.
        download: fetch the files into `root` if they are not there.
        facts: see `ImageData`.
    """

    title: str
    folder: str

    def __init__(self, root: str, download: bool, **facts: Any) -> None:
        super().__init__(num_classes=10, levels=256, **facts)
        self.root, self.download = root, download

    def tensors(self, data: Any) -> Split:
        """Levels (N, C, H, W) uint8 and labels (N,) int64 of an opened dataset."""
        raise NotImplementedError

    def load(self) -> dict[str, Split]:
        """Read torchvision's files; 5,000 training images are held out for validation."""
        (k, y), test = self.tensors(self._open(train=True)), self.tensors(self._open(train=False))
        train, val = hold_out(len(k), n_val=5000)
        return {"train": (k[train], y[train]), "val": (k[val], y[val]), "test": test}

    def _check_sizes(self) -> None:
        """Raise if a file is larger than any of such a dataset: it would be read whole."""
        for file in (Path(self.root) / self.folder).glob("*"):
            if not is_file(file) or file.stat().st_size > LARGEST:
                raise ValueError(f"{file.name} is no file of at most {LARGEST:,} bytes")

    def _open(self, train: bool) -> Any:
        """torchvision's dataset; whatever keeps it from opening becomes one clear line."""
        from torchvision import datasets

        if not self.download and not (Path(self.root) / self.folder).exists():
            raise self._not_found(self.folder)
        try:
            self._check_sizes()
            return getattr(datasets, self.title)(self.root, train=train, download=self.download)
        except Exception as error:  # torchvision asserts, looks up and unpacks; CIFAR-10's pickles by their MD5
            if self.download:
                where = f"{self.title} could not be downloaded to {self.root}"
                raise FlowdiffError(f"dataset.download=true: {where}: {error}") from error
            raise self._not_found(f"{self.folder}, complete and readable,") from error

    def _not_found(self, what: str) -> FlowdiffError:
        """The error for files that are not where they should be."""
        return FlowdiffError(
            f"dataset.root={self.root}: no {self.title} files ({what} not found in {Path(self.root).absolute()}); "
            "set dataset.root or FLOWDIFF_DATA to the folder that holds them, or download them with "
            "dataset.download=true"
        )


def hold_out(n: int, n_val: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Split 0..n−1 into (kept, held out) row numbers, each in ascending order; the same for every run."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[n_val:].sort().values, order[:n_val].sort().values
