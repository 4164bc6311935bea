"""A folder of images of the user's own: a class is a subfolder, or there are no classes."""

import math
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import torch

from flowdiff.data.base import ImageData, Split
from flowdiff.data.folders import clean_name, left_out_line, list_names, scan
from flowdiff.data.pictures import Picture, colour, read_picture
from flowdiff.data.splits import split_by_class
from flowdiff.errors import ConfigError, FlowdiffError
from flowdiff.options import OUTSIDE, Count, Positive, Range, Seed, Workers, checked
from flowdiff.progress import Progress

Fraction = Annotated[float, Range(0, 0.5, above=True, below=True)]
FEWEST = 10
DIM = 4095.0  # a picture of 16 bits that stays below is nearly black, or has fewer bits


class ImageFolder(ImageData):
    """Pictures of one size below `root` in any format that Pillow reads, 256 levels, split at random.

    With subfolders each is a class (in natural order: 2 before 10), its pictures are all that lie below it, and
    pictures beside them are an error; without, the data have no classes. Hidden files are skipped, files of other
    kinds are counted (`data.folders`). How values become bytes: `data.pictures`.

    Args:
        root: the folder.
        channels: 3 (colour) or 1 (gray); files are converted.
        val_fraction, test_fraction: shares held out, at least one image each, of each class in proportion; every
            class keeps an image for training. The split is the same for every `seed`.
        background: the colour behind transparent pixels.
        white: the value of gray of more than 8 bits, or of floats, that is white; None: as the file says it.
        extractor: a small extractor for the images, if one fits.
    """

    @checked
    def __init__(
        self,
        root: Annotated[str, OUTSIDE],
        channels: Literal[1, 3] = 3,
        val_fraction: Fraction = 0.1,
        test_fraction: Fraction = 0.1,
        background: str = "white",
        white: Positive | None = None,
        batch_size: Count = 128,
        seed: Seed = 0,
        num_workers: Workers = 0,
        extractor: str | None = None,
    ) -> None:
        self.root = require_folder(root)
        self.fractions = (val_fraction, test_fraction)
        self.channels, self.background, self.white = int(channels), colour("dataset.background", background), white
        self.found = scan(self.root)
        self.files = self.found.files
        if len(self.files) < FEWEST:
            what = "no images" if not self.files else f"only {len(self.files)} images"
            left_out = left_out_line(self.found)
            raise ConfigError(
                "dataset.root",
                root,
                f"{what} in the folder or its subfolders{f' ({left_out})' if left_out else ''}; at least {FEWEST} "
                "are needed, in formats that Pillow reads (.png, .jpg, .tif, .webp, …)",
            )
        super().__init__(
            name=clean_name(self.root.name) or "images",
            shape=tuple(self.read(self.files[0][0]).pixels.shape),
            num_classes=len(self.found.classes),
            levels=256,
            batch_size=batch_size,
            seed=seed,
            num_workers=num_workers,
            extractor=extractor,
            class_names=self.found.classes,
        )

    def read(self, path: Path) -> Picture:
        """One file."""
        return read_picture(path, self.channels, self.background, self.white)

    def load(self) -> dict[str, Split]:
        """Read all files and split them."""
        y = torch.tensor([label for _, label in self.files])
        rows = split_by_class(y, *self.fractions)
        if rows is None:
            raise ConfigError(
                "dataset.root",
                self.root,
                f"{len(y)} images of {self.num_classes} classes: none is left for validation and test when each class "
                "has one to train on; add images, or put all into one folder (no classes)",
            )
        size = len(y) * math.prod(self.shape)
        if size > memory():
            raise ConfigError(
                "dataset.root",
                self.root,
                f"{len(y):,} images of {area(self.shape)} take {size / 1e9:,.0f} GB of memory, more than there is: "
                "scale them down",
            )
        pictures: list[Picture] = []  # without their pixels
        k = torch.empty(len(y), *self.shape, dtype=torch.uint8)
        with Progress(f"reading {self.name}", len(y)) as progress:
            for i, (path, _) in enumerate(self.files):
                picture = self.read(path)
                if tuple(picture.pixels.shape) != self.shape:
                    raise self._other_size(path, picture, pictures[0])
                k[i] = picture.pixels
                pictures.append(replace(picture, pixels=torch.empty(0)))
                progress.advance()
        self.notes = self._notes(pictures, y, rows)
        return {split: (k[index], y[index]) for split, index in rows.items()}

    def _other_size(self, path: Path, picture: Picture, first: Picture) -> FlowdiffError:
        turned = [" (turned upright)" if each.turned else "" for each in (picture, first)]
        return FlowdiffError(
            f"{path}: is {area(picture.pixels.shape)}{turned[0]}, but {self.files[0][0]} is {area(self.shape)}"
            f"{turned[1]}; all images must have one size: crop or scale them to it"
        )

    def _notes(self, pictures: list[Picture], y: torch.Tensor, rows: dict[str, torch.Tensor]) -> list[str]:
        """What a user should know of the files, in a few lines."""
        counts = y.bincount(minlength=self.num_classes).tolist()
        names = [f"{c} = {name} ({counts[c]})" for c, name in enumerate(self.class_names)]
        lines = [f"classes: {list_names(names)}"] if names else ["no classes: the images lie in no subfolders"]
        frames = sum(picture.frames for picture in pictures)
        parts = [left_out_line(self.found), f"the first frame or page of {frames} files" if frames else None]
        lines += ["; ".join(filter(None, [*parts, *self._whites(pictures)]))]
        small = [
            f"{self.class_names[c]} ({counts[c]})"
            for c in range(self.num_classes)
            if any(not (y[rows[split]] == c).any() for split in ("val", "test"))
        ]
        if small:
            lines.append(f"warning: too few images for one in validation and one in the test: {list_names(small, 8)}")
        return [line for line in lines if line]

    def _whites(self, pictures: list[Picture]) -> list[str]:
        """What was taken for white where the files leave it open.

        Raises:
            FlowdiffError: by what the files say, all of 16 bits would be nearly black.
        """
        if self.white is not None:
            return []
        deep = [i for i, picture in enumerate(pictures) if picture.bits == 16]
        peak = max((pictures[i].peak or 0 for i in deep), default=0)
        if 0 < peak <= DIM:
            raise FlowdiffError(
                f"{self.files[deep[0]][0]}: of 16 bits, but no such file here has a value above {peak:g}: give "
                "dataset.white=N, the value that is white (4095 of a camera of 12 bits; 65535: they are that dark)"
            )
        guessed = Counter(f"{picture.white:.10g}" for picture in pictures if picture.bits == 32)
        if not guessed:
            return []
        said = ", ".join(f"{white} in {count}" for white, count in guessed.items())
        return [f"of integers of 32 bits, white was taken to be {said} files (dataset.white=N)"]


def require_folder(root: object) -> Path:
    """The folder as an absolute path.

    Raises:
        ConfigError: there is none.
    """
    if not isinstance(root, str | os.PathLike) or not str(root):
        raise ConfigError("dataset.root", root, "must be a folder of images")
    path = Path(os.path.abspath(Path(root).expanduser()))
    if path.is_file():
        raise ConfigError("dataset.root", root, "is a file; give the folder that holds the images (unpack an archive)")
    if not path.is_dir():
        raise ConfigError("dataset.root", root, f"there is no folder {path}")
    return path


def memory() -> float:
    """Bytes of this machine's memory; infinite where the system doesn't say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return math.inf


def area(shape: tuple[int, ...] | torch.Size) -> str:
    """(C, H, W) as width×height."""
    return f"{shape[2]}×{shape[1]}"
