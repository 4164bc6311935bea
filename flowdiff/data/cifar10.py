"""CIFAR-10 (Krizhevsky 2009): 60,000 colour images of 32×32 pixels in ten classes."""

from typing import Annotated, Any

import torch

from flowdiff.data.base import Split
from flowdiff.data.downloaded import TorchvisionData
from flowdiff.options import OUTSIDE, Count, Seed, Workers, checked

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class CIFAR10(TorchvisionData):
    """32×32 colour images, 256 levels: 45,000 train, 5,000 validation and 10,000 test images.

    Args:
        root: folder with torchvision's layout (`cifar-10-batches-py/…`).
        download: fetch the files into `root` if they are not there.
    """

    title, folder = "CIFAR10", "cifar-10-batches-py"

    @checked
    def __init__(
        self,
        root: Annotated[str, OUTSIDE],
        download: Annotated[bool, OUTSIDE] = False,
        batch_size: Count = 128,
        seed: Seed = 0,
        num_workers: Workers = 0,
    ) -> None:
        super().__init__(
            root,
            download,
            name="cifar10",
            shape=(3, 32, 32),
            batch_size=batch_size,
            seed=seed,
            num_workers=num_workers,
            class_names=NAMES,
        )

    def tensors(self, data: Any) -> Split:
        return torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets)
