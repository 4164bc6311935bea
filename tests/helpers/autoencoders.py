"""Small autoencoders of diffusers with random weights, in its own layout on disk."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL


def network(**changes: Any) -> AutoencoderKL:
    """Gray 8×8 images to latents 2×4×4, unless something else is said."""
    channels = changes.pop("block_out_channels", (8, 8))
    torch.manual_seed(changes.pop("seed", 0))
    settings = {
        "in_channels": 1,
        "out_channels": 1,
        "down_block_types": ("DownEncoderBlock2D",) * len(channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(channels),
        "block_out_channels": channels,
        "latent_channels": 2,
        "norm_num_groups": 4,
        "sample_size": 8,
    }
    return AutoencoderKL(**settings | changes).eval()


def saved(folder: Path, **changes: Any) -> Path:
    """The folder, with such an autoencoder in it."""
    network(**changes).save_pretrained(folder)
    return folder
