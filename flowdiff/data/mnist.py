"""MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747): 70,000 gray 28×28 images
each.
"""

from pathlib import Path
from typing import Any
from urllib.error import URLError

from torchvision import datasets

from flowdiff.data.base import ImageData, Split, hold_out, missing
from flowdiff.errors import FlowdiffError

FASHION_NAMES = (
    "T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"
)  # fmt: skip


def open_torchvision(cls: Any, name: str, root: str, train: bool, download: bool, what: str) -> Any:
    """Open one of torchvision's datasets; whatever keeps it from opening becomes one clear line.

    Args:
        cls: class in torchvision.datasets with arguments (root, train, download).
        name: name of the dataset in messages.
        what: the folder below ``root`` that should be there.
    """
    if not download and not (Path(root) / what).exists():
        raise missing(name, root, what)
    try:
        return cls(root, train=train, download=download)
    except (URLError, OSError, ValueError, EOFError, RuntimeError) as error:
        if download:
            raise FlowdiffError(f"dataset.download=true: {name} could not be downloaded to {root}: {error}") from error
        raise missing(name, root, f"{what}, complete and readable,") from error


class MNIST(ImageData):
    """28×28 digits, 256 levels, ten classes: 55,000 train, 5,000 validation and 10,000 test images.

    Args:
        root: folder with torchvision's layout (``MNIST/raw/train-images-idx3-ubyte`` …).
        download: fetch the files into ``root`` if they are not there.
    """

    title = "MNIST"
    source: Any = datasets.MNIST

    def __init__(
        self,
        root: str,
        download: bool = False,
        batch_size: int = 128,
        seed: int = 0,
        extractor: str | None = "lenet_mnist",
        name: str = "mnist",
        class_names: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__(
            name=name,
            shape=(1, 28, 28),
            num_classes=10,
            levels=256,
            batch_size=batch_size,
            seed=seed,
            extractor=extractor,
            class_names=class_names,
        )
        self.root = root
        self.download = download

    def prepare_data(self) -> None:
        """Download in one process only, where that was asked for."""
        if self.download:
            self._open(train=True)

    def load(self) -> dict[str, Split]:
        """Read torchvision's files; 5,000 training images are held out for validation."""
        full, test = self._open(train=True), self._open(train=False)
        k, y = full.data.unsqueeze(1), full.targets.long()
        train, val = hold_out(len(k), n_val=5000)
        return {
            "train": (k[train], y[train]),
            "val": (k[val], y[val]),
            "test": (test.data.unsqueeze(1), test.targets.long()),
        }

    def _open(self, train: bool) -> Any:
        folder = f"{type(self).title}/raw"
        return open_torchvision(self.source, type(self).title, self.root, train, self.download, folder)


class FashionMNIST(MNIST):
    """28×28 clothes, in the format and the split sizes of MNIST."""

    title = "FashionMNIST"
    source = datasets.FashionMNIST

    def __init__(
        self,
        root: str,
        download: bool = False,
        batch_size: int = 128,
        seed: int = 0,
        extractor: str | None = "lenet_fashion_mnist",
    ) -> None:
        super().__init__(root, download, batch_size, seed, extractor, "fashion_mnist", FASHION_NAMES)
