"""How samples are cut into patches."""

import math

from flowdiff.errors import ConfigError

MANY_PATCHES = 64  # the most that an automatic patch leaves of a sample


def patch_size(flow: str, shape: tuple[int, ...], patch: int | None) -> int:
    """The side of a patch: the one given, or the automatic one, if it cuts samples into two patches or more.

    Args:
        flow: whose patches they are, as its choice is called.
        shape: of a sample.
        patch: None: the smallest one, from 2 on for images, that leaves at most 64 patches.

    Raises:
        ConfigError: if it does not, or if samples are neither images (C, H, W) nor vectors.
    """
    if len(shape) not in (1, 3):
        raise ConfigError("flow", flow, f"needs images (C, H, W) or vectors, not data of shape {shape}")
    sides = shape[-2:]  # (d,) of a vector
    cuts = [p for p in range(1, max(sides)) if not any(side % p for side in sides)]
    if not cuts:
        raise ConfigError("flow", flow, f"needs data of at least two patches, not of shape {shape}")
    if patch is None:
        few = [p for p in cuts if p >= len(sides) and math.prod(sides) // p ** len(sides) <= MANY_PATCHES]
        return few[0] if few else cuts[-1]
    if patch not in cuts:
        raise ConfigError("flow.patch", patch, f"must be one of {cuts}, which cut samples of shape {shape} evenly")
    return patch
