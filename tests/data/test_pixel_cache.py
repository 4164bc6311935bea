"""Pixels of many files in a file: the rows, order and notes of those in memory, read once, found again, made anew."""

import os
import shutil
import threading
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from flowdiff.data import images, pixel_cache
from flowdiff.data.images import ImageFolder
from flowdiff.data.pixel_cache import StoredRows, write_header
from flowdiff.errors import FlowdiffError
from tests.helpers.peaks import peak_of

SPLITS = ("train", "val", "test")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """30 pictures of two classes, one of them of two frames."""
    rng, folder = np.random.RandomState(0), tmp_path / "pets"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(15):
            Image.fromarray(rng.randint(0, 256, (3, 4, 3)).astype(np.uint8)).save(folder / name / f"{i}.png")
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "dog" / "moves.gif", save_all=True, append_images=frames[1:])
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read for all their pixels from now on, in order."""
    found: list[Path] = []
    read = ImageFolder._read_all

    def noted(self: ImageFolder, reading: images.Reading) -> object:
        found.extend(path for path, _ in self.files)
        return read(self, reading)

    monkeypatch.setattr(ImageFolder, "_read_all", noted)
    return found


def arrays(cache: Path) -> Path:
    """The folder of the only cache."""
    (folder,) = (path for path in (cache / "pixels").iterdir() if path.is_dir())
    return folder


def test_it_is_what_memory_holds(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, kept = ImageFolder(str(root), batch_size=5), ImageFolder(str(root), batch_size=5, cache=str(cache))
    for split in SPLITS:
        for one, other in zip(held.images(split), kept.images(split), strict=True):
            assert torch.equal(one, other)
    assert kept.notes == held.notes and any("the first frame or page of 1 files" in line for line in kept.notes)
    again = ImageFolder(str(root), batch_size=5, cache=str(cache), num_workers=2)
    read = reads(monkeypatch)
    for data in (kept, again):
        for split in SPLITS:
            expected, found = held.batches(split), data.batches(split)
            for _ in range(2):
                for (k, y), (mapped, labels) in zip(expected, found, strict=True):
                    assert torch.equal(k, mapped) and torch.equal(y, labels)
    assert again.notes == held.notes and not read
    assert isinstance(again.encoded("train")[0], StoredRows)


def test_many_are_kept_without_being_asked(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWDIFF_CACHE", str(cache))
    ImageFolder(str(root)).images("train")
    assert not cache.exists()
    monkeypatch.setattr(images, "LARGE", 31 * 36 - 1)
    ImageFolder(str(root)).images("train")
    assert sorted(file.name for file in arrays(cache).iterdir()) == ["facts.json", "test.npy", "train.npy", "val.npy"]
    assert np.load(arrays(cache) / "train.npy").shape == (25, 3, 3, 4)


@pytest.mark.parametrize("options", [{"channels": 1}, {"val_fraction": 0.2}, {"background": "black"}, {"white": 255}])
def test_what_pixels_depend_on_has_a_cache_of_its_own(root: Path, cache: Path, options: dict[str, object]) -> None:
    ImageFolder(str(root), cache=str(cache)).images("train")
    other = ImageFolder(str(root), cache=str(cache), **options)  # type: ignore[arg-type]
    assert torch.equal(other.images("val")[0], ImageFolder(str(root), **options).images("val")[0])  # type: ignore[arg-type]
    assert len([path for path in (cache / "pixels").iterdir() if path.is_dir()]) == 2


def test_other_files_are_other_pixels(root: Path, cache: Path) -> None:
    before = ImageFolder(str(root), cache=str(cache)).images("train")[0].clone()
    file = root / "cat" / "0.png"
    facts = file.stat()
    Image.new("RGB", (4, 3)).save(file)
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    after = ImageFolder(str(root), cache=str(cache))
    assert torch.equal(after.images("train")[0], ImageFolder(str(root)).images("train")[0])
    assert not torch.equal(after.images("train")[0], before)
    shutil.move(root, root.parent / "moved")  # the same files elsewhere are the same pixels
    (root.parent / "moved").rename(root.parent / "pets")
    ImageFolder(str(root), cache=str(cache)).images("train")
    assert len([path for path in (cache / "pixels").iterdir() if path.is_dir()]) == 2


def cut(folder: Path) -> None:
    os.truncate(folder / "train.npy", 900)


def lengthen(folder: Path) -> None:
    with (folder / "val.npy").open("ab") as file:
        file.write(b"\0")


def turn(folder: Path) -> None:
    np.save(folder / "test.npy", np.load(folder / "test.npy").swapaxes(2, 3).copy())


def widen(folder: Path) -> None:
    np.save(folder / "test.npy", np.zeros((3, 3, 3, 4), np.int64))


def mislabel(folder: Path) -> None:
    (folder / "facts.json").write_text('{"digest": "of another", "facts": {"frames": 0, "whites": {}}}')


def empty(folder: Path) -> None:
    (folder / "facts.json").write_text("{}")


def scribble(folder: Path) -> None:
    (folder / "train.npy").write_bytes(b"\x93NUMPY\x01\x00\xff\xff{'descr'")


@pytest.mark.parametrize("damage", [cut, lengthen, turn, widen, mislabel, empty, scribble], ids=lambda f: f.__name__)
def test_what_is_damaged_is_made_anew(
    root: Path, cache: Path, damage: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ImageFolder(str(root), cache=str(cache)).images("train")
    damage(arrays(cache))  # type: ignore[operator]
    read = reads(monkeypatch)
    capsys.readouterr()
    data = ImageFolder(str(root), cache=str(cache))
    data.images("train")
    assert len(read) == 31
    assert capsys.readouterr().out == f"{arrays(cache)}: not the pixels of these files, or cut off; made anew\n"
    monkeypatch.undo()
    for split in SPLITS:
        assert torch.equal(data.images(split)[0], ImageFolder(str(root)).images(split)[0])


def test_an_interrupted_one_is_none(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "dog" / "9.png").write_bytes(b"nothing")
    for _ in range(2):
        with pytest.raises(FlowdiffError, match="9.png: not an image"):
            ImageFolder(str(root), cache=str(cache)).images("train")
    assert [path.suffix for path in (cache / "pixels").iterdir()] == [".lock"]
    (root / "dog" / "9.png").unlink()
    data = ImageFolder(str(root), cache=str(cache))
    data.images("train")
    left = arrays(cache)
    left.rename(left.with_name(f"{left.name}.part"))  # of a process that was killed
    data = ImageFolder(str(root), cache=str(cache))
    assert torch.equal(data.images("train")[0], ImageFolder(str(root)).images("train")[0])
    assert {path.suffix for path in (cache / "pixels").iterdir()} == {".lock", ""}


def test_two_at_once_read_the_files_once(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, found = reads(monkeypatch), []
    both = [ImageFolder(str(root), cache=str(cache)) for _ in range(2)]
    threads = [threading.Thread(target=lambda data=data: found.append(data.images("train")[0])) for data in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read) == 31 and torch.equal(*found)


def test_no_room_is_said_before_anything_is_read(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(pixel_cache.shutil, "disk_usage", lambda path: usage(9, 9, 31 * 36 - 1))
    read = reads(monkeypatch)
    with pytest.raises(FlowdiffError, match=r"dataset\.cache=.*the pixels take 0\.0 GB.*dataset\.cache=FOLDER"):
        ImageFolder(str(root), cache=str(cache)).images("train")
    assert not read
    (root.parent / "file").write_text("")
    with pytest.raises(FlowdiffError, match=r"can't write to dataset\.cache="):
        ImageFolder(str(root), cache=str(root.parent / "file")).images("train")


def test_what_was_read_does_not_stay_resident(tmp_path: Path) -> None:
    n, size = 4096, 1 << 14
    with (tmp_path / "rows.npy").open("wb") as file:
        write_header(file, (n, size))
        file.write(np.random.RandomState(0).bytes(n * size))
    rows, order = StoredRows(tmp_path / "rows.npy"), torch.randperm(n)
    assert torch.equal(rows[order[:9]], rows.tensor[order[:9]])
    assert torch.equal(rows[7:9], rows.tensor[7:9])
    with (tmp_path / "rows.npy").open("r+b") as file:
        file.truncate(n * size)
        with pytest.raises(FlowdiffError, match="was cut off while it was read"):
            rows[-1:]
        file.seek(n * size)
        file.write(bytes(128))

    def go_over(take: Callable[[Tensor], Tensor]) -> float:
        return peak_of(lambda: sum(int(take(part)[:, ::4096].sum()) for part in order.split(64)))

    once = go_over(lambda part: rows[part])
    again = go_over(lambda part: rows[part])
    mapped = go_over(lambda part: rows.tensor[part])
    assert again - once < 0.01
    assert mapped - again > 0.04, "67 MB were mapped"
