"""Integer levels, model space and uint8: the one place where pixels change their units.

An image with L levels has integer pixels k in {0, …, L−1}. In model space each level owns a bin of width 2/L
of [−1, 1]:

    dequantise   x = 2 (k + u) / L − 1,  u uniform on the bin     (Theis et al. 2016, arXiv:1511.01844)
    centre       x = (2k + 1) / L − 1
    level        k = clamp(⌊(x + 1) / 2 · L⌋, 0, L−1)
    uint8        b = round(255 k / (L−1))

so levels → dequantise → levels changes no pixel, and for L = 256 the uint8 image *is* the level image.
"""

import torch
from torch import Tensor

MAX_LEVELS = 256
# u stays this far from the edges of its bin: float32 arithmetic can then never carry a pixel into the next
# bin.
EDGE = 2.0**-15


def check_levels(levels: int) -> None:
    """Levels fit into a byte: 2 <= L <= 256."""
    if not 2 <= levels <= MAX_LEVELS:
        raise ValueError(f"levels={levels}: must be between 2 and {MAX_LEVELS}")


def dequantise(k: Tensor, levels: int, generator: torch.Generator | None = None) -> Tensor:
    """Integer levels to model space, with uniform noise over the bin.

    Args:
        k: integer levels in 0..levels−1, any shape.
        levels: L, the number of levels.
        generator: where the noise comes from (on the device of `k`); None is torch's global generator.

    Returns:
        float32 tensor in [−1, 1], the shape of `k`.
    """
    check_levels(levels)
    u = torch.rand(k.shape, generator=generator, device=k.device).clamp_(EDGE, 1 - EDGE)
    return u.add_(k).mul_(2.0 / levels).sub_(1.0)


def centres(k: Tensor, levels: int) -> Tensor:
    """The middle of each pixel's bin, (2k + 1)/L − 1: the dequantised image without noise. Shape of `k`,
    float32.
    """
    check_levels(levels)
    return (2.0 * k.float() + 1.0) / levels - 1.0


def to_levels(x: Tensor, levels: int) -> Tensor:
    """Model space to integer levels, uint8 of the shape of `x`. Values outside [−1, 1] go to the end
    levels.
    """
    check_levels(levels)
    return ((x + 1.0) * (levels / 2.0)).floor().clamp(0, levels - 1).to(torch.uint8)


def to_uint8(k: Tensor, levels: int) -> Tensor:
    """Integer levels to a displayable byte, round(255 k/(L−1)). Shape of `k`; the identity for L = 256."""
    check_levels(levels)
    if levels == MAX_LEVELS:
        return k.to(torch.uint8)
    return (k.double() * (255.0 / (levels - 1))).round().to(torch.uint8)


def from_uint8(b: Tensor, levels: int) -> Tensor:
    """The inverse of `to_uint8` on its range: round(b (L−1)/255), uint8 of the shape of `b`."""
    check_levels(levels)
    return (b.double() * ((levels - 1) / 255.0)).round().to(torch.uint8)
