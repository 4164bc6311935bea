"""Masks: which pixels of an image are missing. By name, or from a file in which they are white (not 0)."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowdiff.data.pictures import read_picture
from flowdiff.errors import ConfigError, FlowdiffError, one_line
from flowdiff.files import is_file

ALLOWED = (
    "must be the part to leave out: left, right, top, bottom, center, random:P with a share P of the pixels, "
    "as random:0.5, or a file FILE.png or FILE.npy of the image's size in which it is white (not 0)"
)


def _box(height: int, width: int, top: int, bottom: int, left: int, right: int) -> Tensor:
    missing = torch.zeros(height, width, dtype=torch.bool)
    missing[top:bottom, left:right] = True
    return missing


SHAPES: dict[str, Callable[[int, int], Tensor]] = {
    "left": lambda h, w: _box(h, w, 0, h, 0, w // 2),
    "right": lambda h, w: _box(h, w, 0, h, w // 2, w),
    "top": lambda h, w: _box(h, w, 0, h // 2, 0, w),
    "bottom": lambda h, w: _box(h, w, h // 2, h, 0, w),
    "center": lambda h, w: _box(h, w, h // 4, h - h // 4, w // 4, w - w // 4),
}
"""Height and width to the missing pixels, bool (H, W)."""


def missing_pixels(mask: str, shape: tuple[int, ...], seeds: Tensor) -> Tensor:
    """The missing pixels of each image.

    Args:
        mask: a name of `SHAPES`, `random:P`, or a file.
        shape: of an image, (C, H, W).
        seeds: (n,) int64; a random mask is a function of the seed.

    Returns:
        bool (n, C, H, W), True where a pixel is missing; all channels alike unless a file says otherwise.

    Raises:
        ConfigError: an unknown name, a file that can't be read or of another size, nothing or everything missing.
    """
    height, width = shape[1:]
    mask = str(mask)
    name, _, share = mask.partition(":")
    if mask in SHAPES:
        found = SHAPES[mask](height, width)
    elif name == "random":
        found = torch.stack([_random(mask, share, height, width, int(seed)) for seed in seeds])[:, None]
    elif mask.lower().endswith((".png", ".npy")):
        found = _read_file(mask, shape)
    else:
        raise ConfigError("mask", mask, ALLOWED)
    if found.all() or not found.any():
        raise ConfigError("mask", mask, f"it leaves out {'everything' if found.all() else 'nothing'}")
    return found.expand(len(seeds), *shape).contiguous()


def _random(mask: str, share: str, height: int, width: int, seed: int) -> Tensor:
    """Exactly the share P of the pixels, rounded, but neither none nor all."""
    try:
        fraction = float(share)
    except ValueError:
        raise ConfigError("mask", mask, ALLOWED) from None
    if not 0 < fraction < 1:
        raise ConfigError("mask", mask, "the share of missing pixels must be between 0 and 1")
    n = height * width
    count = min(max(round(fraction * n), 1), n - 1)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(2**32 - 1 - seed))
    missing = torch.zeros(n, dtype=torch.bool)
    missing[order[:count]] = True
    return missing.view(height, width)


def _read_file(mask: str, shape: tuple[int, ...]) -> Tensor:
    path = Path(mask).expanduser()
    if not is_file(path):
        raise ConfigError("mask", mask, "no such file")
    sizes = (tuple(shape[1:]), tuple(shape), (1, *shape[1:]))
    try:
        if path.suffix.lower() == ".npy":
            found = np.lib.format.open_memmap(path, mode="r")  # no memory for what a header promises
            missing = found != 0 if found.shape in sizes else found
        else:
            missing = read_picture(path, 1, background=(0, 0, 0)).pixels[0].numpy() > 127
    except (FlowdiffError, OSError, ValueError, TypeError, OverflowError, EOFError) as error:
        raise ConfigError("mask", mask, f"can't be read: {one_line(error, 200)}") from error
    if missing.shape not in sizes:
        size = " x ".join(str(n) for n in missing.shape)
        raise ConfigError("mask", mask, f"is {size}, must be {shape[1]} x {shape[2]} as the image")
    return torch.from_numpy(np.asarray(missing))
