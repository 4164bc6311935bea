"""A user's own pictures: right pixels, right classes, and a line about whatever is neither."""

import os
import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowdiff.data.folders import natural_key
from flowdiff.data.images import ImageFolder
from flowdiff.data.pictures import MOST_PIXELS, formats, read_picture, suffixes
from flowdiff.data.splits import split_by_class
from flowdiff.errors import ConfigError, FlowdiffError, spell
from tests.helpers import pictures

ALL = pictures.pictures()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[Path, int, np.ndarray]]]:
    root = tmp_path_factory.mktemp("own") / "pictures"
    return root, pictures.make(root)


def filled(root: Path, counts: dict[str, int], size: tuple[int, int] = (4, 3)) -> Path:
    """A folder of PNG files, so many of each class."""
    rng = np.random.RandomState(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.fromarray(rng.randint(0, 256, (size[1], size[0], 3)).astype(np.uint8)).save(root / name / f"{i}.png")
    return root


def refused(path: Path, **options: object) -> str:
    with pytest.raises(FlowdiffError) as caught:
        read_picture(path, 3, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


# -- right pixels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_pixels_of_a_file(name: str, tmp_path: Path) -> None:
    write, expected = ALL[name]
    write(tmp_path / name)
    found = read_picture(tmp_path / name, 3).pixels
    off = np.abs(found.permute(1, 2, 0).numpy().astype(int) - expected.astype(int)).max()
    assert found.dtype == torch.uint8 and off <= (1 if name in ("flat.jpg", "lab.tif") else 0)
    luma = expected.astype(int) @ np.array([19595, 38470, 7471]) + 0x8000 >> 16
    alone = read_picture(tmp_path / name, 1).pixels[0].numpy().astype(int)
    assert np.abs(alone - luma).max() <= (1 if name in ("flat.jpg", "lab.tif") else 0)


def test_the_folder_has_right_pixels_and_classes(folder: tuple[Path, list[tuple[Path, int, np.ndarray]]]) -> None:
    root, expected = folder
    assert len(expected) >= 25
    data = ImageFolder(str(root))
    assert data.class_names == ["1", "2", "10", "a2", "a10"] and data.shape == (3, pictures.H, pictures.W)
    splits = [data.images(split) for split in ("train", "val", "test")]
    found = [(k.tobytes(), int(c)) for images, y in splits for k, c in zip(images.numpy(), y, strict=True)]
    exact = [(p.transpose(2, 0, 1).tobytes(), c) for path, c, p in expected if path.name not in ("flat.jpg", "lab.tif")]
    assert len(found) == len(expected)
    assert not [pair for pair in exact if pair not in found]
    classes, left_out = data.notes
    assert classes == "classes: 0 = 1 (10), 1 = 2 (10), 2 = 10 (10), 3 = a2 (10), 4 = a10 (9)"
    for part in ("2 .txt", "1 .csv", "1 .heic", "1 .pdf", "1 without a suffix", "no pictures in the folders drafts"):
        assert part in left_out
    assert "first frame or page of 4 files" in left_out
    assert "white was taken to be" in left_out and all(w in left_out for w in ("255 in", "65535 in", "4294967295 in"))
    assert ".DS_Store" not in left_out and ".db" not in left_out and ".ini" not in left_out


@pytest.mark.parametrize("colour, value", [("black", (0, 0, 0)), ("#102030", (16, 32, 48))])
def test_the_colour_behind_transparent_pixels(colour: str, value: tuple[int, int, int], tmp_path: Path) -> None:
    for i in range(12):
        Image.new("RGBA", (4, 3), (255, 0, 0, 0)).save(tmp_path / f"{i}.png")
    images = ImageFolder(str(tmp_path), background=colour).images("train")[0]
    assert (images == torch.tensor(value).view(3, 1, 1)).all()


YCBCR = pytest.param("YCbCr", marks=pytest.mark.skipif(not pictures.READS_YCBCR, reason="Pillow before 13"))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "CMYK", YCBCR, "LAB", "I;16", "I;16B", "I", "F"])
def test_every_mode_that_a_tiff_holds(mode: str, tmp_path: Path) -> None:
    """White is white, and nothing is refused."""
    white = {"I;16": 65535, "I;16B": 65535, "I": 65535, "F": 1.0, "CMYK": (0, 0, 0, 0), "YCbCr": (255, 128, 128)}
    white |= {"LA": (255, 255), "RGB": (255,) * 3, "RGBA": (255,) * 4, "LAB": (255, 128, 128)}
    Image.new(mode, (4, 3), white.get(mode, 255)).save(tmp_path / "x.tif")  # type: ignore[arg-type]
    for channels in (1, 3):
        assert (read_picture(tmp_path / "x.tif", channels).pixels >= 254).all()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"x"])
def test_damaged_exif_turns_nothing(suffix: str, exif: bytes, tmp_path: Path) -> None:
    Image.new("RGB", (4, 3), (99, 99, 99)).save(tmp_path / f"x{suffix}", exif=exif)
    found = read_picture(tmp_path / f"x{suffix}", 3).pixels
    assert found.shape == (3, 3, 4) and ((found.int() - 99).abs() <= 1).all()


# -- values whose white is not known ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array, message",
    [
        (np.full((3, 4), 2000, np.int32), "integers of 32 bits up to 2000.*dataset.white=N"),
        (np.full((3, 4), 10**6, np.int32), "integers of 32 bits up to 1000000.*dataset.white=N"),
        (np.full((3, 4), 1, np.int32), "dataset.white=N"),
        (np.full((3, 4), -5, np.int32), "a pixel is -5, and black is 0"),
        (np.full((3, 4), 200, np.float32), "must lie in \\[0, 1\\], and a pixel is 200; dataset.white=N"),
        (np.full((3, 4), -0.5, np.float32), "a pixel is -0.5, and a float image must lie"),
        (np.full((3, 4), np.nan, np.float32), "a pixel is NaN or inf"),
        (np.full((3, 4), np.inf, np.float32), "a pixel is NaN or inf"),
    ],
)
def test_never_silently_black_or_clipped(array: np.ndarray, message: str, tmp_path: Path) -> None:
    Image.fromarray(array).save(tmp_path / "x.tif")
    assert re.search(message, refused(tmp_path / "x.tif"))


def test_signed_integers_of_16_bits(tmp_path: Path) -> None:
    body = np.full((pictures.H, pictures.W), 3000, np.int16).tobytes()
    (tmp_path / "x.tif").write_bytes(pictures.tiff(16, body, samples=2))
    assert "integers of 16 bits up to 3000" in refused(tmp_path / "x.tif")
    assert (read_picture(tmp_path / "x.tif", 1, white=6000).pixels == 128).all()


def test_white_can_be_said(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 2000, 4095]], np.int32)).save(tmp_path / "x.tif")
    assert read_picture(tmp_path / "x.tif", 1, white=4095).pixels.flatten().tolist() == [0, 125, 255]
    Image.fromarray(np.array([[0, 100, 255]], np.float32)).save(tmp_path / "f.tif")
    assert read_picture(tmp_path / "f.tif", 1, white=255).pixels.flatten().tolist() == [0, 100, 255]
    assert "a pixel is 4095, above dataset.white=255" in refused(tmp_path / "x.tif", white=255)


def test_16_bits_that_are_12(tmp_path: Path) -> None:
    for i in range(12):
        Image.fromarray(np.full((3, 4), 340 * i, np.uint16)).save(tmp_path / f"{i}.png")
    with pytest.raises(FlowdiffError, match=r"0\.png: of 16 bits, but .* above 3740: give dataset.white=N"):
        ImageFolder(str(tmp_path)).images("train")
    for white in (4095, 65535):
        data = ImageFolder(str(tmp_path), white=white, channels=1)
        found = sorted(int(k.max()) for split in ("train", "val", "test") for k in data.images(split)[0])
        assert found == [round(340 * i * 255 / white) for i in range(12)]
    Image.fromarray(np.full((3, 4), 60000, np.uint16)).save(tmp_path / "bright.png")
    ImageFolder(str(tmp_path)).images("train")


# -- files that can't be read -----------------------------------------------------------------------------------


def test_what_pillow_reads_is_taken() -> None:
    assert {".webp", ".gif", ".ppm", ".jp2", ".png", ".jpg", ".jfif", ".mpo", ".tiff", ".avif"} <= suffixes()
    assert not {".pdf", ".eps", ".ps", ".h5", ".mpg", ".txt", ""} & suffixes()
    assert "EPS" not in formats()  # Pillow would run Ghostscript


@pytest.mark.parametrize("name", ["picture.webp", "picture.bmp", "picture.jp2", "flat.jpg", "rgb.png", "sixteen.tif"])
def test_cut_files_are_named(name: str, tmp_path: Path) -> None:
    ALL[name][0](tmp_path / name)
    content = (tmp_path / name).read_bytes()
    for part in (content[: len(content) * 2 // 3], content[:4], b"", b"hello", b"\0" * 100):
        (tmp_path / name).write_bytes(part)
        message = refused(tmp_path / name)
        assert "repair it or move it out of the folder" in message
        assert ("it is empty" in message) == (part == b"")


def test_other_kinds_of_files_with_an_images_name(tmp_path: Path) -> None:
    filled(tmp_path, {"a": 10})
    (tmp_path / "a" / "x.png").symlink_to("nowhere.png")
    with pytest.raises(FlowdiffError, match=r"x\.png: a link that leads nowhere"):
        ImageFolder(str(tmp_path))
    (tmp_path / "a" / "x.png").unlink()
    os.mkfifo(tmp_path / "a" / "x.png")
    with pytest.raises(FlowdiffError, match=r"x\.png: not a regular file"):
        ImageFolder(str(tmp_path))


@pytest.mark.parametrize("size", [(20000, 20000), (12000, 9000), (6000, 6000)])
def test_a_huge_picture_is_named(size: tuple[int, int], tmp_path: Path) -> None:
    """Above Pillow's two limits, and above this project's."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b""))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert f"more than {MOST_PIXELS:,} pixels" in refused(tmp_path / "x.png")


def test_a_turned_picture_of_another_size_says_so(tmp_path: Path) -> None:
    filled(tmp_path, {"a": 10})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 3)).save(tmp_path / "a" / "phone.jpg", exif=exif)
    with pytest.raises(FlowdiffError, match=r"phone\.jpg: is 3×4 \(turned upright\), but .*0\.png is 4×3;.*scale"):
        ImageFolder(str(tmp_path)).images("train")


# -- folders ----------------------------------------------------------------------------------------------------


def test_natural_order() -> None:
    names = ["12", "a10", "2", "b", "a2", "1", "A3", "10", "01", "a", "É2", "é10"]
    assert sorted(names, key=natural_key) == ["01", "1", "2", "10", "12", "a", "a2", "A3", "a10", "b", "É2", "é10"]


def test_a_class_of_other_formats_is_a_class(tmp_path: Path) -> None:
    filled(tmp_path, {"png": 10})
    (tmp_path / "web").mkdir()
    for i in range(5):
        Image.new("RGB", (4, 3)).save(tmp_path / "web" / f"{i}.WEBP", format="WEBP")
    assert ImageFolder(str(tmp_path)).class_names == ["png", "web"]


def test_links_are_followed_but_never_for_ever(tmp_path: Path) -> None:
    filled(tmp_path / "elsewhere", {"dogs": 5})
    root = filled(tmp_path / "root", {"cat": 6})
    (root / "dog").symlink_to(tmp_path / "elsewhere" / "dogs")
    (root / "cat" / "again").symlink_to(root / "cat")
    (root / "cat" / "above").symlink_to(tmp_path)
    (root / "ring").symlink_to(root / "ring")
    data = ImageFolder(str(root))
    assert data.class_names == ["cat", "dog"] and len(data.files) == 11


def test_splits_are_no_classes(tmp_path: Path) -> None:
    filled(tmp_path, {"train/cat": 10, "train/dog": 10, "test/cat": 10})
    with pytest.raises(FlowdiffError, match=r"dataset\.root=.*: test, train are splits, not classes: give one"):
        ImageFolder(str(tmp_path))
    assert ImageFolder(str(tmp_path / "train")).class_names == ["cat", "dog"]
    filled(tmp_path, {"plane": 2})
    assert ImageFolder(str(tmp_path)).class_names == ["plane", "test", "train"]


def test_names_that_can_not_be_printed(tmp_path: Path) -> None:
    filled(tmp_path, {"cafe\u0301": 6, "x\x1b[31m": 6})
    (tmp_path / os.fsdecode(b"\xff")).mkdir()
    Image.new("RGB", (4, 3)).save(tmp_path / os.fsdecode(b"\xff") / "0.png")
    data = ImageFolder(str(tmp_path))
    assert "café" in data.class_names and all(name.isprintable() for name in data.class_names)
    data.images("train")
    assert "\n".join(data.notes).encode()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"channels": 2}, "channels=2: must be one of 1, 3"),
        ({"channels": True}, "channels=true: must be one of 1, 3"),
        ({"channels": None}, "channels=null: must be one of 1, 3"),
        *(({key: value}, f"{key}={spell(value)}: must be a number above 0 and below 0.5")
          for key in ("val_fraction", "test_fraction")
          for value in (None, -0.1, 0, 0.5, 3, "a", True, [0.1], float("nan"))),
        ({"white": 0}, "white=0: must be"),
        ({"white": "a"}, "white=a: must be"),
        ({"background": "whitish"}, "dataset.background=whitish: must be a colour"),
        ({"background": 3}, "background=3: must be text"),
        ({"background": None}, "background=null: must be text"),
        ({"root": None}, "root=null: must be text"),
        ({"root": ""}, "root='': must be text"),
        ({"root": 3}, "root=3: must be text"),
        ({"root": "/nowhere"}, "dataset.root=/nowhere: there is no folder /nowhere"),
        ({"root": __file__}, "is a file; give the folder"),
    ],
)  # fmt: skip
def test_mistakes_name_true_keys(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        ImageFolder(**({"root": str(filled(tmp_path, {"a": 10}))} | options))  # type: ignore[arg-type]
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_what_was_left_out_is_said_where_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    for i in range(12):
        (tmp_path / "cat" / f"{i}.heic").write_bytes(b"x")
    with pytest.raises(FlowdiffError, match=r"dataset\.root=.*no images .*12 \.heic; no pictures in the folders cat"):
        ImageFolder(str(tmp_path))


# -- splits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes", [[10, 10], [1, 30], [4] * 12, [2, 2, 2, 9], [1, 1, 1, 11], [500, 37, 3], [12], [1, 2, 9]]
)
@pytest.mark.parametrize("fractions", [(0.1, 0.1), (0.3, 0.05), (0.49, 0.49)])
def test_every_class_is_trained_on(sizes: list[int], fractions: tuple[float, float]) -> None:
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    rows = split_by_class(labels, *fractions)
    assert rows is not None
    assert torch.equal(torch.cat(list(rows.values())).sort().values, torch.arange(len(labels)))
    counts = {split: labels[index].bincount(minlength=len(sizes)) for split, index in rows.items()}
    assert (counts["train"] >= 1).all() and all(len(index) for index in rows.values())
    again = split_by_class(labels, *fractions)
    assert again is not None and all(torch.equal(index, again[split]) for split, index in rows.items())
    for split, fraction in zip(("val", "test"), fractions, strict=True):
        share = torch.tensor(sizes) * fraction
        assert ((counts[split] - share).abs() <= 1.5)[torch.tensor(sizes) >= 10].all() or sum(fractions) > 0.9
        if sum(fractions) < 0.9 and min(sizes) >= 4:
            assert len(rows[split]) == max(1, round(len(labels) * fraction))


def test_classes_that_are_too_small_are_named(tmp_path: Path) -> None:
    data = ImageFolder(str(filled(tmp_path, {"cat": 20, "dog": 20, "emu": 1, "fox": 2})))
    data.images("train")
    assert set(data.images("train")[1].tolist()) == {0, 1, 2, 3}
    assert data.notes[-1] == "warning: too few images for one in validation and one in the test: emu (1), fox (2)"


def test_twelve_classes_of_one_image(tmp_path: Path) -> None:
    data = ImageFolder(str(filled(tmp_path, {str(i): 1 for i in range(1, 13)})))
    assert data.class_names == [str(i) for i in range(1, 13)]
    with pytest.raises(FlowdiffError, match="12 images of 12 classes: none is left for validation and test"):
        data.images("train")
