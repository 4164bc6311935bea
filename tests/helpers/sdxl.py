"""A tiny SDXL with random weights, written by diffusers: its classes, its folder, nothing of its training."""

import atexit
import functools
import json
import shutil
import string
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer


def tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's, of single letters and digits."""
    folder.mkdir()
    signs = string.ascii_lowercase + string.digits
    words = [*signs, *(f"{sign}</w>" for sign in signs), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=24)


def text_config(width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=80,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=16,
        max_position_embeddings=24,
        bos_token_id=72,
        eos_token_id=73,
        pad_token_id=73,
    )


@functools.cache
def tiny_sdxl(channels: int = 1, prediction_type: str = "epsilon", zeros: bool = True, karras: bool = False) -> Path:
    """The folder of one whose U-Net takes images of so many channels."""
    folder = Path(tempfile.mkdtemp(prefix="flowdiff-sdxl-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 1),
            attention_head_dim=(2, 4),
            cross_attention_dim=16 + 24,
            use_linear_projection=True,
            norm_num_groups=4,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=16 + 6 * 4,
        )
        vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=channels)
        first, second = CLIPTextModel(text_config(16)), CLIPTextModelWithProjection(text_config(24))
    words = tokenizer(folder / "words")
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
        prediction_type=prediction_type,
        use_karras_sigmas=karras,
    )
    StableDiffusionXLPipeline(
        vae, first, second, words, words, unet, scheduler, force_zeros_for_empty_prompt=zeros, add_watermarker=False
    ).save_pretrained(folder)
    return folder
