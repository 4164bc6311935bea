"""One picture file as bytes, by Pillow: upright, over a background where it is transparent, from any depth to 0..255.

Pixels of 8 bits are taken as they are (palettes, CMYK, YCbCr and LAB by Pillow's own conversions; colour profiles are
not applied), colour of 16 bits is cut to 8 by Pillow. Gray of more than 8 bits is scaled, v·255/white, where white is

    4095, 65535    of 12 and 16 bits, as the file says it
    1              of floats
    255, 65535, 2³² − 1    of 32-bit integers, which say nothing of their range: the one that the largest value, in
                   16..255, in 4096..65535 or from 2³¹ up, can mean; another largest value is an error

unless `white` says it. Of several frames or pages the first is taken.
"""

import functools
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError
from torch import Tensor

from flowdiff.errors import ConfigError, FlowdiffError, one_line

#: Formats that Pillow knows by name but doesn't decode, or decodes by running another program.
UNFIT = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
MOST_PIXELS = 1 << 25
#: What a PNG's transparent gray or colour has to be multiplied by to be one of the pixels that Pillow makes of it.
PNG_SCALE = {"L;2": 85.0, "L;4": 17.0, "RGB;16B": 1 / 256}
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Picture:
    """What was read from a file.

    Attributes:
        pixels: uint8 (C, H, W).
        frames: there are more frames or pages than this.
        turned: width and height were exchanged, as its EXIF orientation asks for.
        bits: of a pixel of gray in the file: 8 (or less), 12, 16, 32; 0 of floats.
        white: the value that became 255; None of 8 bits.
        peak: the largest value in the file; None of 8 bits.
    """

    pixels: Tensor
    frames: bool = False
    turned: bool = False
    bits: int = 8
    white: float | None = None
    peak: float | None = None


@functools.cache
def formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read."""
    Image.init()
    return tuple(name for name in Image.OPEN if name not in UNFIT)


@functools.cache
def suffixes() -> frozenset[str]:
    """The suffixes of those formats, in lower case and with the dot."""
    known = {suffix for suffix, name in Image.registered_extensions().items() if name in formats()}
    return frozenset(known | {".mpo"})  # which Pillow opens as JPEG


def colour(key: str, value: object) -> Colour:
    """Red, green and blue, 0..255, of a colour that Pillow knows by name or as #rrggbb."""
    try:
        if not isinstance(value, str):
            raise ValueError
        red, green, blue = ImageColor.getcolor(value, "RGB")  # type: ignore[misc]
    except ValueError as error:
        raise ConfigError(key, value, "must be a colour, as white, black or '#808080'") from error
    return int(red), int(green), int(blue)


def read_picture(
    path: Path, channels: int, background: Colour = (255, 255, 255), white: float | None = None
) -> Picture:
    """The picture in a file.

    Args:
        path: the file; its content says what it is, not its name.
        channels: 3 or 1: colour is made gray (ITU-R 601-2), gray is made colour.
        background: what is seen through transparent pixels.
        white: the value of gray of more than 8 bits, or of floats, that becomes 255; None: see this module.

    Raises:
        FlowdiffError: names the file: it can't be read, is too large, or its values can't be brought to 0..255.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes and damage: both are checked
            with Image.open(path, formats=formats()) as file:
                return _read(path, file, channels, background, white)
    except FlowdiffError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(path) from error
    except Exception as error:  # Pillow's readers raise all kinds on a damaged file
        if isinstance(error, UnidentifiedImageError):
            reason = "it is empty" if not path.stat().st_size else "its content is no picture that Pillow knows"
        else:
            reason = one_line(getattr(error, "strerror", None) or error)
        raise FlowdiffError(
            f"{path}: not an image that can be read ({reason}): repair it or move it out of the folder"
        ) from error


def _too_large(path: Path, size: str = "") -> FlowdiffError:
    return FlowdiffError(f"{path}:{size} more than {MOST_PIXELS:,} pixels, the most that is read: scale it down")


def _read(path: Path, file: Any, channels: int, background: Colour, white: float | None) -> Picture:
    size = file.size
    if size[0] * size[1] > MOST_PIXELS:
        raise _too_large(path, f" {size[0]}×{size[1]},")
    _scale_transparency(file)
    facts = {tag: file.tag_v2.get(tag) for tag in (BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT)} if _tiff(file) else {}
    kind = file.format
    file.load()
    image = _upright(file)
    turned = image.size != size
    bits, peak = 8, None
    if image.mode == "F" or image.mode.startswith("I"):
        values, bits, natural = _values(image, kind, facts)
        _check_values(path, values, bits)
        peak = float(values.max())
        white = white or natural or _guess_white(path, peak, bits)
        if peak > white * (1 + 1e-6):
            raise FlowdiffError(f"{path}: {_too_bright(peak, white, bits)}")
        gray = Image.fromarray(np.rint(np.minimum(values, white) * (255 / white)).astype(np.uint8))
        key = image.info.get("transparency")
        if isinstance(key, int):
            gray = Image.merge("LA", (gray, Image.fromarray(((values != key) * 255).astype(np.uint8))))
        image = gray
    else:
        white = None
    pixels = np.array(_flat(image, background).convert("L" if channels == 1 else "RGB"))
    found = torch.from_numpy(pixels).reshape(pixels.shape[0], pixels.shape[1], channels).permute(2, 0, 1)
    return Picture(found, _has_frames(file), turned, bits, white, peak)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # its EXIF is damaged and says nothing; the picture is whole
        return image.copy()


def _flat(image: Image.Image, background: Colour) -> Image.Image:
    """The image without transparency, in a mode that every other can be made from: L or RGB."""
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image)
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _tiff(file: Any) -> bool:
    return hasattr(file, "tag_v2")


def _has_frames(file: Any) -> bool:
    try:
        return bool(getattr(file, "is_animated", False))
    except Exception:  # what follows the first frame is damaged, and not used
        return True


def _scale_transparency(file: Any) -> None:
    """A PNG of 2, 4 or 16 bits gives its transparent value in those bits, its pixels in 8."""
    key = file.info.get("transparency")
    args = file.tile[0][3] if file.format == "PNG" and file.tile else None
    scale = PNG_SCALE.get(args[0] if isinstance(args, tuple) else args) if args else None
    if scale is not None and key is not None:
        file.info["transparency"] = tuple(int(v * scale) for v in key) if isinstance(key, tuple) else int(key * scale)


def _values(image: Image.Image, kind: str | None, facts: dict[int, Any]) -> tuple[np.ndarray, int, float | None]:
    """(H, W) float64, the bits of a pixel in the file (0: floats), and the value that is white; None: it isn't said."""
    values = np.asarray(image)
    if image.mode == "F":
        values = values.astype(np.float64)
        return (1 - values if facts.get(PHOTOMETRIC) == 0 else values), 0, 1.0
    signed = _first(facts.get(SAMPLE_FORMAT)) == 2
    if image.mode == "I" and not signed and facts:
        values = values.astype(np.int32).view(np.uint32)  # Pillow's I is signed, whatever the file holds
    bits = int(_first(facts.get(BITS_PER_SAMPLE)) or (32 if image.mode == "I" and kind not in ("PNG", "PPM") else 16))
    said = bits < 32 and not signed and kind != "FITS"
    white = float(2**bits - 1) if said else None
    numbers = values.astype(np.float64)
    if white is not None and facts.get(PHOTOMETRIC) == 0:  # 0 is white, and Pillow leaves it so
        numbers = white - numbers
    return numbers, bits, white


def _first(tag: Any) -> Any:
    return tag[0] if isinstance(tag, tuple) and tag else tag


def _check_values(path: Path, values: np.ndarray, bits: int) -> None:
    if not np.isfinite(values).all():
        raise FlowdiffError(f"{path}: a pixel is NaN or inf")
    low = float(values.min())
    if low < 0:
        what = "a float image must lie in [0, 1]" if bits == 0 else "black is 0"
        raise FlowdiffError(f"{path}: a pixel is {low:g}, and {what}")


def _too_bright(peak: float, white: float, bits: int) -> str:
    if bits == 0 and white == 1:
        return f"a float image must lie in [0, 1], and a pixel is {peak:g}; dataset.white=N says which value is white"
    return f"a pixel is {peak:.10g}, above dataset.white={white:g}"


def _guess_white(path: Path, peak: float, bits: int) -> float:
    """White, of integers whose range the file doesn't say."""
    if bits == 32:
        for least, white in ((16, 2**8 - 1), (2**12, 2**16 - 1), (2**31, 2**32 - 1)):
            if peak == 0 or least <= peak <= white:
                return float(white)
    raise FlowdiffError(
        f"{path}: integers of {bits} bits up to {peak:.10g}, and which value is white the file doesn't say: "
        "give dataset.white=N, as 255, 4095 or 65535"
    )
