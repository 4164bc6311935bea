"""A folder of images of the user's own: a class is a subfolder, or there are no classes."""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from flowdiff.data.base import ImageData, Split
from flowdiff.errors import ConfigError, FlowdiffError
from flowdiff.options import OUTSIDE

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
FEWEST = 10


def read_image(path: Path, channels: int) -> Tensor:
    """One file as uint8 (C, H, W).

    8-bit images are taken as they are, 16-bit gray is cut to its upper byte. A float image (TIFF) must lie in
    [0, 1].

    Raises:
        FlowdiffError: names the file: undecodable, NaN or inf, float values out of [0, 1].
    """
    try:
        with Image.open(path) as file:
            image: Image.Image = file
            if image.mode == "F":
                values = np.asarray(image, dtype=np.float64)
                if not np.isfinite(values).all():
                    raise FlowdiffError(f"{path}: a pixel is NaN or inf")
                if values.min() < 0 or values.max() > 1:
                    raise FlowdiffError(f"{path}: a float image must lie in [0, 1]")
                image = Image.fromarray(np.round(values * 255).astype(np.uint8))
            elif image.mode.startswith("I"):
                image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
            pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise FlowdiffError(f"{path}: not an image that can be read ({error})") from error
    return torch.from_numpy(pixels).reshape(pixels.shape[0], pixels.shape[1], channels).permute(2, 0, 1)


class ImageFolder(ImageData):
    """PNG or JPEG files of one size below ``root``, 256 levels, split at random into train, validation and
    test.

    With subfolders each is a class (in alphabetical order) and images lying beside them are an error;
    without, the data have no classes.

    Args:
        root: the folder.
        channels: 3 (colour) or 1 (gray); files are converted.
        val_fraction, test_fraction: shares held out, at least one image each. The split is the same for every
        ``seed``.
        extractor: a small extractor for the images, if one fits.
    """

    def __init__(
        self,
        root: Annotated[str, OUTSIDE],
        channels: int = 3,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        batch_size: int = 128,
        seed: int = 0,
        extractor: str | None = None,
    ) -> None:
        if channels not in (1, 3):
            raise ConfigError("dataset.channels", channels, "must be 1 (gray) or 3 (colour)")
        for key, value in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
            if not 0 < value < 0.5:
                raise ConfigError(f"dataset.{key}", value, "must lie between 0 and 0.5")
        self.root = Path(root)
        self.fractions = {"val": val_fraction, "test": test_fraction}
        if not self.root.is_dir():
            raise FlowdiffError(f"dataset.root={root}: there is no folder {self.root.absolute()}")
        classes = sorted(folder.name for folder in self.root.iterdir() if folder.is_dir() and images_in(folder))
        loose = images_in(self.root)
        if classes and loose:
            raise FlowdiffError(f"{loose[0]}: lies beside the class folders {', '.join(classes)}; move it into one")
        self.files = [(path, c) for c, name in enumerate(classes) for path in images_in(self.root / name)]
        self.files = self.files or [(path, 0) for path in loose]
        if len(self.files) < FEWEST:
            what = "no images" if not self.files else f"only {len(self.files)} images"
            raise FlowdiffError(
                f"dataset.root={root}: {what} ({', '.join(SUFFIXES)}) in the folder or its subfolders; "
                f"at least {FEWEST} are needed"
            )
        super().__init__(
            name=self.root.name,
            shape=tuple(read_image(self.files[0][0], channels).shape),
            num_classes=len(classes),
            levels=256,
            batch_size=batch_size,
            seed=seed,
            extractor=extractor,
            class_names=classes,
        )

    def load(self) -> dict[str, Split]:
        """Read all files and split them."""
        images = []
        for path, _ in self.files:
            image = read_image(path, self.shape[0])
            if tuple(image.shape) != self.shape:
                raise FlowdiffError(
                    f"{path}: is {size(image.shape)}, but {self.files[0][0]} is {size(self.shape)}; "
                    "all images must have one size"
                )
            images.append(image)
        k, y = torch.stack(images), torch.tensor([label for _, label in self.files])
        order = torch.randperm(len(k), generator=torch.Generator().manual_seed(0))
        n_val, n_test = (max(1, round(len(k) * self.fractions[split])) for split in ("val", "test"))
        val, test, train = order[:n_val], order[n_val : n_val + n_test], order[n_val + n_test :]
        rows = {"train": train, "val": val, "test": test}
        return {split: (k[index.sort().values], y[index.sort().values]) for split, index in rows.items()}


def images_in(folder: Path) -> list[Path]:
    """The image files that lie in a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in SUFFIXES)


def size(shape: tuple[int, ...] | torch.Size) -> str:
    """(C, H, W) as width×height."""
    return f"{shape[2]}×{shape[1]}"
