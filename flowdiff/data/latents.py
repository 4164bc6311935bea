r"""A data set seen through a first stage: latents in place of pixels, encoded once and kept on disk.

A row of the encoded data is (μ, ς), the mean and standard deviation of the posterior (`data.first_stage`); what a
model is trained on is drawn from it anew each time, x0 = μ + ς·ε.

The cache of one split is a folder, named by the data set, the split and a hash of the images themselves, the
autoencoder and the form of the cache; in it are shards (safetensors) of at most ROWS rows or 64 MiB. A shard appears
under its name when it is whole, so that an encoding that was interrupted goes on where it was, and a lock keeps two
processes from doing the work twice. Shards are mapped into memory, not read: the system loads what is used.
"""

import hashlib
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from flowdiff.data.base import ImageData, Split
from flowdiff.data.first_stage import PIXELS, FirstStage, posterior_sample
from flowdiff.errors import ConfigError
from flowdiff.files import cache_folder, hold_lock, make_folder, write_whole
from flowdiff.progress import Progress

ROWS = 1024
BYTES = 1 << 26
FORM = 1  # of the cache: other numbers are other folders
STATISTICS = 1 << 27  # numbers that the moments are measured on, at most


class Shards:
    """Rows (N, 2, c, h, w) float32 that lie in files one after the other, indexed like a tensor.

    Args:
        paths: the files, in order.
        rows: of each file but the last.
        n: N.
    """

    def __init__(self, paths: list[Path], rows: int, n: int) -> None:
        self.rows, self.n = rows, n
        self.parts = [read_shard(path) for path in paths]

    def __len__(self) -> int:
        return self.n

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, 2, c, h, w)."""
        return (self.n, *self.parts[0].shape[1:])

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """The rows of int64 (M,), or of a slice, as a tensor of their own."""
        numbers = torch.arange(self.n)[index] if isinstance(index, slice) else index
        found = torch.empty(len(numbers), *self.shape[1:])
        shard = numbers // self.rows
        for i in shard.unique().tolist():
            here = shard == i
            found[here] = self.parts[i][numbers[here] - i * self.rows]
        return found


def read_shard(path: Path) -> Tensor:
    """The rows of a file, mapped into memory.

    Raises:
        SafetensorError: it is cut off, or no shard.
        OSError: it is not there.
    """
    with safe_open(path, framework="pt") as file:
        return file.get_tensor("moments")


class LatentData(ImageData):
    """The latents of a data set of images.

    Its `images` are still the images, for metrics that look at them; `encoded` and all batches are (μ, ς).

    Args:
        pixels: the images, loaded.
        first_stage: what encodes and decodes them.
    """

    @property
    def has_images(self) -> bool:
        return True

    def __init__(self, pixels: ImageData, first_stage: FirstStage) -> None:
        if pixels.levels is None:
            allowed = f"encodes images, and {pixels.name} are points: first_stage=identity"
            raise ConfigError("first_stage", "autoencoder_kl", allowed)
        super().__init__(
            name=str(pixels.name),
            shape=first_stage.latent_shape(pixels.shape),
            num_classes=pixels.num_classes,
            levels=None,
            batch_size=pixels.batch_size,
            seed=pixels.seed,
            extractor=pixels.extractor,
            class_names=pixels.class_names,
            num_workers=pixels.num_workers,
        )
        self.pixels, self.first_stage, self.pixel_levels = pixels, first_stage, pixels.levels
        self.cache = Path(first_stage.cache or cache_folder()).expanduser() / "latents"
        self.notes = pixels.notes
        self._encoded: dict[str, Shards] = {}

    @property
    def image_shape(self) -> tuple[int, ...]:
        return self.pixels.shape

    @property
    def first_stage_facts(self) -> dict[str, Any]:
        """`sha256` of the autoencoder, `levels` of the pixels."""
        return {"sha256": self.first_stage.fingerprint, "levels": self.pixel_levels}

    def load(self) -> dict[str, Split]:
        raise NotImplementedError  # the images are loaded, the latents read when they are asked for

    def images(self, split: str) -> Split:
        """The images themselves, as levels, and their labels."""
        return self.pixels.images(split)

    def encoded(self, split: str) -> tuple[Shards, Tensor]:
        """The posteriors of a split, rows (2, c, h, w), and its labels. Encoded if that was not done before."""
        k, labels = self.images(split)
        if split not in self._encoded:
            self._encoded[split] = encode_once(self.first_stage, self.pixels, split, self.cache, self.shape)
        return self._encoded[split], labels

    def to_model(self, k: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A sample of each posterior (B, 2, c, h, w): (B, c, h, w)."""
        return posterior_sample(k, generator)

    def to_centres(self, k: Tensor) -> Tensor:
        """The posteriors' means."""
        return k[:, 0]

    def measured_rows(self) -> tuple[Tensor, Tensor, float]:
        """A sample of each posterior of the training split, or of as many as have 2^27 numbers, and their labels."""
        shards, labels = self.encoded("train")
        n = min(len(shards), max(2, STATISTICS // math.prod(self.shape)))
        rows = torch.randperm(len(shards), generator=torch.Generator().manual_seed(0))[:n].sort().values
        parts = [
            self.to_model(shards[part], torch.Generator().manual_seed(i)) for i, part in enumerate(rows.split(ROWS))
        ]
        return torch.cat(parts), labels[rows], 0.0

    def to_uint8(self, x: Tensor) -> Tensor:
        """Latents (N, c, h, w) to bytes (N, C, H, W): decoded, slice by slice."""
        return self.first_stage.to_uint8(x, self.pixel_levels)

    def levels_to_uint8(self, k: Tensor) -> Tensor:
        """Levels of the images to bytes."""
        return self.pixels.levels_to_uint8(k)


def apply_first_stage(first_stage: FirstStage, data: ImageData) -> ImageData:
    """The data as a model sees them: as they are, or their latents."""
    return data if first_stage.trivial else LatentData(data, first_stage)


def encode_once(first_stage: FirstStage, pixels: ImageData, split: str, cache: Path, shape: tuple[int, ...]) -> Shards:
    """The posteriors of a split's images, from the cache or by encoding what is missing there."""
    k, _ = pixels.images(split)
    rows = max(1, min(ROWS, BYTES // (8 * math.prod(shape))))
    digest = hashlib.sha256(f"{FORM}|{split}|{tuple(k.shape)}|{pixels.levels}|{first_stage.fingerprint}".encode())
    for part in k.split(ROWS):
        digest.update(part.contiguous().numpy().tobytes())
    folder = make_folder(cache / f"{pixels.name}-{split}-{digest.hexdigest()[:16]}", "first_stage.cache")
    count = -(-len(k) // rows)
    paths = [folder / f"{i:05d}-of-{count:05d}.safetensors" for i in range(count)]
    if not all(is_shard(path) for path in paths):
        with hold_lock(folder / "lock"):
            missing = [i for i, path in enumerate(paths) if not is_shard(path)]  # another process may have been here
            parts = {i: k[i * rows : (i + 1) * rows] for i in missing}
            with Progress(f"encoding {pixels.name}, {split}", sum(map(len, parts.values()))) as progress:
                for i, part in parts.items():
                    write_shard(paths[i], encode(first_stage, pixels, part, progress))
    return Shards(paths, rows, len(k))


def encode(first_stage: FirstStage, pixels: ImageData, k: Tensor, progress: Progress) -> Tensor:
    """The posteriors (N, 2, c, h, w) of levels (N, C, H, W), of which as many as PIXELS allows are floats at once."""
    moments = []
    for part in k.split(max(1, PIXELS // math.prod(k.shape[-2:]))):
        moments.append(first_stage.encode(pixels.to_centres(part)))
        progress.advance(len(part))
    return torch.cat(moments)


def write_shard(path: Path, moments: Tensor) -> None:
    """The file of some rows (N, 2, c, h, w), there when it is whole."""
    content = save({"moments": moments.contiguous()})
    write_whole(path, lambda file: file.write(content))


def is_shard(path: Path) -> bool:
    """Whether a shard is there and can be read."""
    try:
        read_shard(path)
    except (OSError, SafetensorError):
        return False
    return True
