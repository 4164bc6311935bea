"""MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747): 70,000 gray 28×28 images each."""

from collections.abc import Callable
from typing import Annotated, Any

from torch import Tensor

from flowdiff.data.base import ImageData, Split
from flowdiff.data.downloaded import TorchvisionData
from flowdiff.options import OUTSIDE, Count, Seed, Workers, checked

FASHION_NAMES = (
    "T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"
)  # fmt: skip


class MNIST(TorchvisionData):
    """28×28 digits, 256 levels, ten classes: 55,000 train, 5,000 validation and 10,000 test images.

    Args:
        root: folder with torchvision's layout (`MNIST/raw/train-images-idx3-ubyte` …).
        download: fetch the files into `root` if they are not there.
    """

    title, folder = "MNIST", "MNIST/raw"

    @checked
    def __init__(
        self,
        root: Annotated[str, OUTSIDE],
        download: Annotated[bool, OUTSIDE] = False,
        batch_size: Count = 128,
        seed: Seed = 0,
        num_workers: Workers = 0,
        extractor: str | None = "lenet_mnist",
        name: str = "mnist",
        class_names: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__(
            root,
            download,
            name=name,
            shape=(1, 28, 28),
            batch_size=batch_size,
            seed=seed,
            num_workers=num_workers,
            extractor=extractor,
            class_names=class_names,
        )

    def tensors(self, data: Any) -> Split:
        return data.data.unsqueeze(1), data.targets.long()

    def out_of_distribution(self) -> dict[str, Callable[[str], Tensor]]:
        """Fashion-MNIST below the same root, then the own images transposed."""
        other = {"fashion_mnist": lambda split: FashionMNIST(self.root).images(split)[0]}
        return other | super().out_of_distribution()


class FashionMNIST(MNIST):
    """28×28 clothes, in the format and the split sizes of MNIST."""

    title, folder = "FashionMNIST", "FashionMNIST/raw"

    @checked
    def __init__(
        self,
        root: Annotated[str, OUTSIDE],
        download: Annotated[bool, OUTSIDE] = False,
        batch_size: Count = 128,
        seed: Seed = 0,
        num_workers: Workers = 0,
        extractor: str | None = "lenet_fashion_mnist",
    ) -> None:
        super().__init__(root, download, batch_size, seed, num_workers, extractor, "fashion_mnist", FASHION_NAMES)

    def out_of_distribution(self) -> dict[str, Callable[[str], Tensor]]:
        """MNIST below the same root, then the own images transposed."""
        other = {"mnist": lambda split: MNIST(self.root).images(split)[0]}
        return other | ImageData.out_of_distribution(self)
