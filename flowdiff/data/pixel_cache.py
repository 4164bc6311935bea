"""Pixels of many files, read once and kept on disk, not in memory.

The cache of a data set is a folder, named by the data and a hash of the files' names, sizes and times and of all that
pixels depend on; in it are an array (.npy, uint8) of each split and `facts.json`. It is written under another name and
renamed when it is whole, and a lock keeps two processes from doing the work twice. What is cut off, or is something
else, is made anew; so is a small cache of which a byte has changed.

A training reads the rows of its batches (`StoredRows`): what is resident is a batch, however large the array. What
wants all rows as a tensor has them mapped into memory; pages that it has touched count as the process's until the
system takes them back.
"""

import functools
import hashlib
import json
import math
import mmap
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from flowdiff.errors import FlowdiffError
from flowdiff.files import Unreadable, cache_folder, hold_lock, make_folder, read_json, write_json

FORM = 1  # of the cache: other numbers are other folders
FACTS = "facts.json"
CHECKED = 64 << 20  # bytes of a cache that is read through each time that it is opened


def folder_of_caches(cache: str | None) -> Path:
    """Where the caches of all data sets are, below `cache`; None: FLOWDIFF_CACHE, or ~/.cache/flowdiff."""
    return (Path(cache).expanduser() if cache else cache_folder()) / "pixels"


class StoredRows:
    """An array of bytes in a file, of which the rows that are asked for are read.

    Args:
        path: a file that `write_header` and the bytes of N rows make.

    Attributes:
        shape: (N, …).

    Raises:
        OSError: it isn't there.
        ValueError: it is no such file, or has another number of bytes.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._file = path, path.open("rb", buffering=0)
        if np.lib.format.read_magic(self._file) != (1, 0):
            raise ValueError(f"{path} is of another version")
        self.shape, _, dtype = np.lib.format.read_array_header_1_0(self._file)
        self._begin, self._row = self._file.tell(), math.prod(self.shape[1:])
        if dtype != np.uint8 or os.fstat(self._file.fileno()).st_size != self._begin + len(self) * self._row:
            raise ValueError(f"{path} is cut off")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """The rows of int64 (M,), or of a slice, as a tensor of their own."""
        numbers = range(len(self))[index] if isinstance(index, slice) else index.tolist()
        found = torch.empty(len(numbers), *self.shape[1:], dtype=torch.uint8)
        for row, number in zip(found.flatten(1).numpy(), numbers, strict=True):
            content = os.pread(self._file.fileno(), self._row, self._begin + number * self._row)
            if len(content) < self._row:
                raise FlowdiffError(f"{self.path}: was cut off while it was read")
            row[:] = np.frombuffer(content, np.uint8)
        return found

    @functools.cached_property
    def tensor(self) -> Tensor:
        """All of it, uint8 (N, …), mapped into memory and not to be written to; what is read of it stays resident
        until the system takes it back."""
        content = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it can't be written to
            return torch.frombuffer(content, dtype=torch.uint8, offset=self._begin).reshape(self.shape)


def write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """What stands before the bytes of an array (NumPy's format, version 1.0)."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def fingerprint(files: Iterable[tuple[Path, int]], root: Path, settings: Mapping[str, Any]) -> str:
    """SHA-256 of the files' names below `root`, sizes and times, and of what else their pixels depend on.

    Raises:
        FlowdiffError: a file is gone.
    """
    found, begin = hashlib.sha256(json.dumps([FORM, settings], sort_keys=True).encode()), len(str(root))
    for path, _ in files:
        try:
            facts = os.stat(path)
        except OSError as error:
            raise FlowdiffError(f"{path}: can't be read ({error.strerror})") from error
        found.update(os.fsencode(f"{str(path)[begin:]}|{facts.st_size}|{facts.st_mtime_ns}\n"))
    return found.hexdigest()


@dataclass(frozen=True)
class PixelCache:
    """The pixels of one data set in a folder.

    Attributes:
        parent: where caches are, the user's own.
        name: of the data.
        digest: `fingerprint`.
        shapes: by split, (N, C, H, W).
    """

    parent: Path
    name: str
    digest: str
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def folder(self) -> Path:
        """Where the arrays are."""
        return self.parent / f"{self.name[:40]}-{self.digest[:16]}"

    def open(self) -> tuple[dict[str, StoredRows], Any] | None:
        """The arrays by split and what is said of them; None: there is nothing, or something else."""
        try:
            content = read_json(self.folder / FACTS)
            rows = {split: StoredRows(self.folder / f"{split}.npy") for split in self.shapes}
            if content["digest"] != self.digest or any(rows[split].shape != self.shapes[split] for split in rows):
                return None
            if content["sums"] != self._sums(self.folder):
                return None
            return rows, content["facts"]
        except (OSError, ValueError, KeyError, TypeError, Unreadable):
            return None

    def open_or_make(self, write: Callable[[Mapping[str, BinaryIO]], Any]) -> tuple[dict[str, StoredRows], Any]:
        """The arrays by split and what is said of them.

        Args:
            write: called if there is no such cache: writes the rows of each split, in order, and returns plain facts.

        Raises:
            FlowdiffError: there is no room, or the folder can't be written to.
        """
        found = self.open()
        if found is not None:
            return found
        make_folder(self.parent, "dataset.cache")
        try:
            with hold_lock(self.folder.with_name(f"{self.folder.name}.lock")):
                return self.open() or self._make(write)  # another process may have been here
        except OSError as error:
            raise FlowdiffError(f"can't write to dataset.cache={self.parent}: {error.strerror or error}") from error

    def _make(self, write: Callable[[Mapping[str, BinaryIO]], Any]) -> tuple[dict[str, StoredRows], Any]:
        if self.folder.exists():
            print(f"{self.folder}: not the pixels of these files, or cut off; made anew", flush=True)
        part = self.folder.with_name(f"{self.folder.name}.part")  # of a process that was killed, if it is there
        shutil.rmtree(part, ignore_errors=True)
        self._need_room()
        try:
            part.mkdir()
            with ExitStack() as stack:
                files = {split: stack.enter_context((part / f"{split}.npy").open("wb")) for split in self.shapes}
                for split, file in files.items():
                    write_header(file, self.shapes[split])
                facts = write(files)
                for file in files.values():
                    file.flush()
                    os.fsync(file.fileno())
            write_json(part / FACTS, {"digest": self.digest, "facts": facts, "sums": self._sums(part)})
            shutil.rmtree(self.folder, ignore_errors=True)
            part.rename(self.folder)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        found = self.open()
        if found is None:
            raise FlowdiffError(f"{self.folder}: what was written there can't be read again")
        return found

    @property
    def _size(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())

    def _sums(self, folder: Path) -> dict[str, str]:
        """SHA-256 of each array in a folder, of small ones."""
        sums = {}
        for split in self.shapes if self._size <= CHECKED else ():
            with (folder / f"{split}.npy").open("rb") as file:
                sums[split] = hashlib.file_digest(file, "sha256").hexdigest()
        return sums

    def _need_room(self) -> None:
        size = self._size
        free = shutil.disk_usage(self.parent).free
        if size > free:
            raise FlowdiffError(
                f"dataset.cache={self.parent}: the pixels take {size / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free "
                "there: scale the images down, or give dataset.cache=FOLDER"
            )
