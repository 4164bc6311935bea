"""scikit-learn's handwritten digits: 1,797 real 8×8 images with 17 levels, inside the package scikit-learn.

Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998 (its test
set).
"""

import torch

from flowdiff.data.base import ImageData, Split
from flowdiff.options import Count, Seed, Workers, checked


class Digits(ImageData):
    """8×8 digits, levels 0..16, ten classes: 1257 train, 180 validation, 360 test images, stratified.

    The split is the same for every `seed`.
    """

    @checked
    def __init__(self, batch_size: Count = 128, seed: Seed = 0, num_workers: Workers = 0) -> None:
        super().__init__(
            name="digits",
            shape=(1, 8, 8),
            num_classes=10,
            levels=17,
            batch_size=batch_size,
            seed=seed,
            num_workers=num_workers,
            extractor="mlp_digits",
        )

    def load(self) -> dict[str, Split]:
        """Read the images and split them 70 / 10 / 20 %."""
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        images, labels = load_digits(return_X_y=True)
        k = torch.from_numpy(images).round().to(torch.uint8).reshape(-1, 1, 8, 8)
        y = torch.from_numpy(labels).long()
        rest, test = train_test_split(torch.arange(len(y)).numpy(), test_size=360, stratify=labels, random_state=0)
        train, val = train_test_split(rest, test_size=180, stratify=labels[rest], random_state=0)
        return {name: (k[rows], y[rows]) for name, rows in (("train", train), ("val", val), ("test", test))}
