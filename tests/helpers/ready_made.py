"""Denoisers that are read from folders of diffusers: tiny ones with random weights, and a tiny UNet2DModel."""

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from tests.helpers.sdxl import tiny_sdxl


@functools.cache
def tiny_unet2d(
    shape: tuple[int, ...] = (1, 8, 8), embeds: int | None = None, prediction_type: str = "epsilon"
) -> Path:
    """The folder of a DDPMPipeline with 100 levels, scaled linear in β, and a U-Net of two resolutions."""
    folder = Path(tempfile.mkdtemp(prefix="flowdiff-unet2d-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=tuple(shape[1:]),
            in_channels=shape[0],
            out_channels=shape[0],
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            attention_head_dim=4,
            num_class_embeds=embeds,
        )
    scheduler = DDPMScheduler(
        num_train_timesteps=100,
        beta_schedule="scaled_linear",
        beta_start=0.001,
        beta_end=0.2,
        prediction_type=prediction_type,
        clip_sample=False,
    )
    DDPMPipeline(unet, scheduler).save_pretrained(folder)
    return folder


#: By their names in conf/denoiser: the folder of one for images of a shape and so many classes.
READY_MADE: dict[str, Callable[[tuple[int, ...], int], Path]] = {
    "sdxl": lambda shape, num_classes: tiny_sdxl(shape[0]),
    "unet_diffusers_pretrained": lambda shape, num_classes: tiny_unet2d(tuple(shape), num_classes + 1 or None),
}


def changed(part: str, **values: Any) -> Callable[[Path], object]:
    """What sets values of the configuration of a part of such a folder."""

    def change(folder: Path) -> None:
        (file,) = (folder / part).glob("*config.json")
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change
