"""flowdiff: diffusion models whose denoiser is a normalizing flow."""

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowdiff.api import Model

__all__ = ["load"]


def load(
    path: "str | PathLike[str]", weights: str = "ema", device: str = "cpu", first_stage: str | None = None
) -> "Model":
    """The model of a checkpoint, see `flowdiff.api`."""
    from flowdiff.api import load as load_model

    return load_model(path, weights, device, first_stage)
