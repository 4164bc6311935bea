"""A folder of images of the user's own: a class is a subfolder or what a table says, or there are no classes."""

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import torch
from torch import Tensor

from flowdiff.data.base import LARGE, ImageData, Split
from flowdiff.data.folders import clean_name, left_out_line, list_names
from flowdiff.data.loader import Rows
from flowdiff.data.picture_tables import find_pictures
from flowdiff.data.pictures import Picture, colour, read_picture
from flowdiff.data.pixel_cache import PixelCache, StoredRows, fingerprint, folder_of_caches
from flowdiff.data.splits import split_by_class
from flowdiff.errors import ConfigError, FlowdiffError
from flowdiff.options import OUTSIDE, Count, Positive, Range, Seed, Workers, checked
from flowdiff.progress import Progress

Fraction = Annotated[float, Range(0, 0.5, above=True, below=True)]
FEWEST = 10
DIM = 4095.0  # a picture of 16 bits that stays below is nearly black, or has fewer bits


@dataclass
class Reading:
    """What many files have shown, but for their pixels.

    Attributes:
        turned: the first was turned upright.
        frames: how many have more than one frame or page.
        deep: the number of the first of 16 bits.
        peak: the largest value in those.
        whites: of integers of 32 bits, what was taken for white, and in how many files.
    """

    turned: bool = False
    frames: int = 0
    deep: int | None = None
    peak: float = 0.0
    whites: Counter[str] = field(default_factory=Counter)

    def add(self, i: int, picture: Picture) -> None:
        """File number i."""
        self.turned = picture.turned if i == 0 else self.turned
        self.frames += picture.frames
        if picture.bits == 16:
            self.deep, self.peak = (i if self.deep is None else self.deep), max(self.peak, picture.peak or 0)
        if picture.bits == 32:
            self.whites[f"{picture.white:.10g}"] += 1

    def to_plain(self) -> dict[str, Any]:
        """What is said of the files later."""
        return {"frames": self.frames, "whites": dict(self.whites)}

    @classmethod
    def from_plain(cls, content: Any) -> "Reading":
        """The inverse of `to_plain`."""
        return cls(frames=int(content["frames"]), whites=Counter(content["whites"]))


class ImageFolder(ImageData):
    """Pictures of one size below `root` in any format that Pillow reads, 256 levels, split at random.

    With subfolders each is a class (in natural order: 2 before 10), its pictures are all that lie below it, and
    pictures beside them are an error; without, the data have no classes. A table `metadata.csv` or `metadata.jsonl`
    that names the class of each picture is taken before the subfolders (`data.picture_tables`). Hidden files are
    skipped, files of other kinds are counted (`data.folders`). How values become bytes: `data.pictures`.

    Args:
        root: the folder.
        channels: 3 (colour) or 1 (gray); files are converted.
        val_fraction, test_fraction: shares held out, at least one image each, of each class in proportion; every
            class keeps an image for training. The split is the same for every `seed`.
        background: the colour behind transparent pixels.
        white: the value of gray of more than 8 bits, or of floats, that is white; None: as the file says it.
        extractor: a small extractor for the images, if one fits.
        cache: folder for the pixels as they were read (`data.pixel_cache`); None: they are held in memory up to LARGE
            bytes, and more of them kept in FLOWDIFF_CACHE, or ~/.cache/flowdiff.
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
        cache: Annotated[str | None, OUTSIDE] = None,
    ) -> None:
        self.cache = cache
        self._stored: dict[str, StoredRows] = {}
        self.root = require_folder(root)
        self.fractions = (val_fraction, test_fraction)
        self.channels, self.background, self.white = int(channels), colour("dataset.background", background), white
        self.found = find_pictures(self.root)
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
        """Read all files, or find what was read of them before, and split them."""
        y = torch.tensor([label for _, label in self.files])
        rows = split_by_class(y, *self.fractions)
        if rows is None:
            raise ConfigError(
                "dataset.root",
                self.root,
                f"{len(y)} images of {self.num_classes} classes: none is left for validation and test when each class "
                "has one to train on; add images, or put all into one folder (no classes)",
            )
        if self.cache is None and len(y) * math.prod(self.shape) <= LARGE:
            reading, k = Reading(), torch.empty(len(y), *self.shape, dtype=torch.uint8)
            for row, pixels in zip(k, self._read_all(reading), strict=True):
                row[:] = pixels
            whole = {split: k[index] for split, index in rows.items()}
        else:
            self._stored, reading = self._open_cache(rows)
            whole = {split: stored.tensor for split, stored in self._stored.items()}
        self.notes = self._notes(reading, y, rows)
        return {split: (k, y[rows[split]]) for split, k in whole.items()}

    def encoded(self, split: str) -> tuple[Rows, Tensor]:
        """The images, by way of the file if they are in one: what was read is not kept in memory."""
        k, labels = self.images(split)
        return self._stored.get(split, k), labels

    def _read_all(self, reading: Reading) -> Iterator[Tensor]:
        """The pixels of each file, in order; `reading` is filled."""
        with Progress(f"reading {self.name}", len(self.files)) as progress:
            for i, (path, _) in enumerate(self.files):
                picture = self.read(path)
                if tuple(picture.pixels.shape) != self.shape:
                    raise self._other_size(path, picture, reading)
                reading.add(i, picture)
                yield picture.pixels
                progress.advance()
        self._check_depth(reading)

    def _open_cache(self, rows: dict[str, Tensor]) -> tuple[dict[str, StoredRows], Reading]:
        """The pixels of each split in a file, written if that was not done before."""
        settings: dict[str, Any] = {"settings": [*self.shape, self.background, self.white, *self.fractions]}
        if self.found.by_table:  # else a file's name holds its class, and by that its split
            settings["labels"] = [label for _, label in self.files]
        digest = fingerprint(self.files, self.root, settings)
        shapes = {split: (len(index), *self.shape) for split, index in rows.items()}
        parent = folder_of_caches(self.cache)

        def write(files: Mapping[str, BinaryIO]) -> dict[str, Any]:
            goes_to: list[BinaryIO] = [files["train"]] * len(self.files)
            for split, index in rows.items():
                for i in index.tolist():
                    goes_to[i] = files[split]
            reading = Reading()
            for file, pixels in zip(goes_to, self._read_all(reading), strict=True):
                file.write(pixels.contiguous().numpy().tobytes())
            return reading.to_plain()

        stored, facts = PixelCache(parent, self.name, digest, shapes).open_or_make(write)
        return stored, Reading.from_plain(facts)

    def _other_size(self, path: Path, picture: Picture, reading: Reading) -> FlowdiffError:
        turned = [" (turned upright)" if is_turned else "" for is_turned in (picture.turned, reading.turned)]
        return FlowdiffError(
            f"{path}: is {area(picture.pixels.shape)}{turned[0]}, but {self.files[0][0]} is {area(self.shape)}"
            f"{turned[1]}; all images must have one size: crop or scale them to it"
        )

    def _notes(self, reading: Reading, y: Tensor, rows: dict[str, Tensor]) -> list[str]:
        """What a user should know of the files, in a few lines."""
        counts = y.bincount(minlength=self.num_classes).tolist()
        names = [f"{c} = {name} ({counts[c]})" for c, name in enumerate(self.class_names)]
        lines = [f"classes: {list_names(names)}"] if names else ["no classes: the images lie in no subfolders"]
        first = f"the first frame or page of {reading.frames} files" if reading.frames else None
        lines += ["; ".join(filter(None, [left_out_line(self.found), first, self._whites(reading)]))]
        small = [
            f"{self.class_names[c]} ({counts[c]})"
            for c in range(self.num_classes)
            if any(not (y[rows[split]] == c).any() for split in ("val", "test"))
        ]
        if small:
            lines.append(f"warning: too few images for one in validation and one in the test: {list_names(small, 8)}")
        return [line for line in lines if line]

    def _check_depth(self, reading: Reading) -> None:
        """Raise if by what the files say, all of 16 bits would be nearly black."""
        if self.white is None and reading.deep is not None and 0 < reading.peak <= DIM:
            raise FlowdiffError(
                f"{self.files[reading.deep][0]}: of 16 bits, but no such file here has a value above {reading.peak:g}: "
                "give dataset.white=N, the value that is white (4095 of a camera of 12 bits; 65535: they are that dark)"
            )

    def _whites(self, reading: Reading) -> str | None:
        """What was taken for white where the files leave it open."""
        if self.white is not None or not reading.whites:
            return None
        said = ", ".join(f"{white} in {count}" for white, count in reading.whites.items())
        return f"of integers of 32 bits, white was taken to be {said} files (dataset.white=N)"


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


def area(shape: tuple[int, ...] | torch.Size) -> str:
    """(C, H, W) as width×height."""
    return f"{shape[2]}×{shape[1]}"
