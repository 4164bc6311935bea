"""Crops of scikit-learn's two photographs: real colour images inside the package, nothing to download.

A photograph of 427×640 pixels is cut into upright bands first,

    columns   0 … 255   256 … 319   320 … 511   512 … 639
    split     train     val         train       test

and the crops are taken inside a band, one every `stride` pixels in both directions: crops of a split overlap, those
of different splits share no pixel. Each training crop is there once more as its mirror image.

Source: scikit-learn's `load_sample_images`: china.jpg (a pavilion under the sky; flickr, danielbuechele) and
flower.jpg (a dahlia before leaves; flickr, vultilion), both CC BY 2.0.
"""

from typing import Annotated

import torch
from torch import Tensor

from flowdiff.data.base import ImageData, Split
from flowdiff.options import Count, Range, Seed, Workers, checked

NAMES = ("china", "flower")
BANDS = {"train": ((0, 256), (320, 512)), "val": ((256, 320),), "test": ((512, 640),)}
LARGEST = min(end - begin for bands in BANDS.values() for begin, end in bands)


class Patches(ImageData):
    """size×size colour patches, 256 levels; the photograph is the class. Of 32 pixels, every 6: 17,160 train, 792
    validation and 2,244 test images. The split is the same for every `seed`.

    Args:
        size: side of a patch in pixels, at most 64 (the narrowest band).
        stride: pixels from one crop to the next.

    Raises:
        ConfigError: a `size` that fits no band, or is below 2; a `stride` below 2.
    """

    @checked
    def __init__(
        self,
        size: Annotated[int, Range(2, LARGEST)] = 32,
        stride: Annotated[int, Range(2, 1000)] = 6,
        batch_size: Count = 128,
        seed: Seed = 0,
        num_workers: Workers = 0,
    ) -> None:
        self.size, self.stride = size, stride
        super().__init__(
            "patches",
            (3, size, size),
            2,
            256,
            batch_size=batch_size,
            seed=seed,
            num_workers=num_workers,
            class_names=NAMES,
        )

    def load(self) -> dict[str, Split]:
        """Read the photographs and cut them."""
        from sklearn.datasets import load_sample_images

        photographs = [torch.tensor(image).permute(2, 0, 1) for image in load_sample_images().images]
        splits = {}
        for split, bands in BANDS.items():
            crops = [torch.cat([self._crops(photo[..., a:b]) for a, b in bands]) for photo in photographs]
            k, labels = torch.cat(crops), torch.arange(2).repeat_interleave(len(crops[0]))
            if split == "train":
                k, labels = torch.cat([k, k.flip(-1)]), labels.repeat(2)
            splits[split] = (k, labels)
        return splits

    def _crops(self, band: Tensor) -> Tensor:
        """(3, H, W) to (N, 3, size, size), row by row."""
        windows = band.unfold(1, self.size, self.stride).unfold(2, self.size, self.stride)
        return windows.permute(1, 2, 0, 3, 4).flatten(0, 1).contiguous()
