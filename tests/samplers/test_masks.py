"""Masks by name and from files, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowdiff.errors import ConfigError
from flowdiff.samplers.masks import SHAPES, missing_pixels

SHAPE = (3, 6, 8)
SEEDS = torch.arange(4)


@pytest.mark.parametrize("name", SHAPES)
def test_named(name: str) -> None:
    missing = missing_pixels(name, SHAPE, SEEDS)
    assert missing.shape == (4, *SHAPE) and missing.dtype == torch.bool
    assert (missing == missing[:1, :1]).all()
    share = missing.float().mean()
    assert float(share) == pytest.approx(4 * 4 / 48 if name == "center" else 0.5)
    row, column = missing[0, 0].nonzero().float().mean(0).tolist()
    assert (row, column) == {
        "left": (2.5, 1.5),
        "right": (2.5, 5.5),
        "top": (1.0, 3.5),
        "bottom": (4.0, 3.5),
        "center": (2.5, 3.5),
    }[name]


def test_random_is_a_function_of_the_seed() -> None:
    missing = missing_pixels("random:0.25", SHAPE, SEEDS)
    assert (missing.flatten(1).sum(1) == 3 * 12).all() and (missing == missing[:, :1]).all()
    assert len({tuple(m.flatten().tolist()) for m in missing}) == 4
    assert torch.equal(missing_pixels("random:0.25", SHAPE, SEEDS[2:3]), missing[2:3])
    assert (
        missing_pixels("random:0.0001", SHAPE, SEEDS).any() and not missing_pixels("random:.9999", SHAPE, SEEDS).all()
    )


@pytest.mark.parametrize("channels", [False, True])
def test_files(channels: bool, tmp_path: Path) -> None:
    wanted = torch.zeros(*SHAPE, dtype=torch.bool)
    wanted[:, 1:3, 2:7] = True
    np.save(tmp_path / "mask.npy", wanted.numpy() if channels else wanted[0].float().numpy())
    Image.fromarray(wanted[0].numpy().astype(np.uint8) * 255).save(tmp_path / "mask.png")
    for file in ("mask.npy", "mask.png"):
        assert (missing_pixels(str(tmp_path / file), SHAPE, SEEDS) == wanted).all()


def test_files_as_programs_write_them(tmp_path: Path) -> None:
    """White strokes on nothing, 16 bits, and turned by EXIF: as any picture."""
    white = np.zeros((6, 8), np.uint8)
    white[1:3, 2:7] = 255
    strokes = np.dstack([np.full((6, 8, 3), 255, np.uint8), white])
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(strokes).save(tmp_path / "strokes.png")
    Image.fromarray(white.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(np.ascontiguousarray(np.rot90(white, 2))).save(tmp_path / "turned.png", exif=exif)
    for name in ("strokes", "deep", "turned"):
        found = missing_pixels(str(tmp_path / f"{name}.png"), SHAPE, SEEDS)
        assert np.array_equal(found[0, 0].numpy(), white > 0), name


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ("middle", "mask=middle: must be .*left, right, top, bottom, center, random:P.*FILE.png or FILE.npy"),
        ("random", "mask=random: must be"),
        ("random:half", "mask=random:half: must be"),
        ("random:1.5", "must be between 0 and 1"),
        ("random:0", "must be between 0 and 1"),
        ("random:nan", "must be between 0 and 1"),
        ("nowhere.png", "mask=nowhere.png: no such file"),
        ("wrong.npy", "mask=wrong.npy: is 8 x 6, must be 6 x 8"),
        ("wrong.png", "mask=wrong.png: is 8 x 6, must be 6 x 8"),
        ("large.npy", r"^mask=large\.npy: is 600 x 800, must be 6 x 8 as the image$"),
        ("endless.npy", r"^mask=endless\.npy: can't be read"),
        ("zipped.npy", r"^mask=zipped\.npy: can't be read"),
        ("records.npy", r"^mask=records\.npy: can't be read"),
        ("empty.npy", "leaves out nothing"),
        ("full.png", "leaves out everything"),
        ("text.png", "mask=text.png: can't be read"),
        ("text.npy", "mask=text.npy: can't be read"),
        ("objects.npy", "mask=objects.npy: can't be read"),
    ],
)
def test_mistakes(mask: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = np.eye(8, 6)
    np.save("wrong.npy", wrong)
    np.save("empty.npy", np.zeros((6, 8)))
    np.save("large.npy", np.eye(600, 800))
    np.save("records.npy", np.zeros((6, 8), dtype=[("a", "f4"), ("b", "f4")]))
    header = {"descr": "<f8", "fortran_order": False, "shape": (2**40, 8)}
    with Path("endless.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
    np.savez("zipped.npz", wrong)
    Path("zipped.npz").rename("zipped.npy")
    np.save("objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    Image.fromarray(wrong.astype(np.uint8) * 255).save("wrong.png")
    Image.fromarray(np.full((6, 8), 255, dtype=np.uint8)).save("full.png")
    for file in ("text.png", "text.npy"):
        Path(file).write_text("no picture")
    with pytest.raises(ConfigError, match=message) as caught:
        missing_pixels(mask, SHAPE, SEEDS)
    assert "\n" not in str(caught.value)
