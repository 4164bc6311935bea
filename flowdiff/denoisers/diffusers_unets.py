r"""The U-Nets of diffusers as free networks F of `denoisers.free`, trained from scratch.

    UNet2DModel            of DDPM (Ho et al. 2020): residual blocks, attention on all but the full resolution
    UNet2DConditionModel   in the configuration of SDXL (Podell et al. 2023, arXiv:2307.01952), scaled

Their own time embedding, sines and cosines of a timestep, is given c_noise = ¼ ln σ, as diffusers' EDM schedulers do.
The embedding of σ and the class (`nn.embeddings`, the null class a row of its own) is added to it by a linear
layer; in SDXL's it takes the place of the text: linear layers make its tokens and its pooled text embedding.

SDXL's widths are all multiples of 32, the number of groups of its normalisations: 320, 640, 1280 channels; 2048 numbers
in a token of text, 1280 in the pooled text, 256 for each of six sizes. With u in the place of 32 (u = 32·width_factor)
they are 10u, 20u, 40u; 64u, 40u and 8u, and the numbers of layers and of heads stay.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowdiff.denoisers.free import FreeDenoiser
from flowdiff.errors import ConfigError, how_to_install
from flowdiff.nn.attention import attention_for
from flowdiff.nn.dropout import drop_values
from flowdiff.nn.embeddings import Conditioning
from flowdiff.nn.unet import groups
from flowdiff.options import Length, Range, Size, checked


class _Dropout(nn.Module):
    """A dropout layer of a network that can't be given an argument for it: its denoiser sets the share at each call."""

    share = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return drop_values(x, self.share)


class DiffusersDenoiser(FreeDenoiser):
    """Base of both: D of a network `unet` of diffusers whose output starts at zero. A subclass gives `unet_output`.

    Args:
        shape: (C, H, W).
        num_classes: K, 0 for none.
        conditioning: makes the embedding of σ and class.

    Raises:
        ConfigError: the data are no images, or diffusers is not installed.
    """

    choice: str  # in conf/denoiser
    unet: nn.Module

    def __init__(self, shape: tuple[int, ...], num_classes: int, conditioning: Callable[..., Conditioning]) -> None:
        if len(shape) != 3:
            raise ConfigError("denoiser", self.choice, f"needs images (C, H, W), not data of shape {tuple(shape)}")
        super().__init__(shape, num_classes, conditioning)

    def _adopt(self, unet: Any) -> None:
        """Take the network in: zero at its start, and with dropout layers whose share can be set."""
        nn.init.zeros_(unet.conv_out.weight)
        nn.init.zeros_(unet.conv_out.bias)
        for module in list(unet.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.Dropout):
                    setattr(module, name, _Dropout())
        self.unet = unet

    def network(self, x: Tensor, c_noise: Tensor, embedding: Tensor, dropout: float = 0.0) -> Tensor:
        for module in self.unet.modules():
            if isinstance(module, _Dropout):
                module.share = dropout
        with attention_for(False, x):
            return self.unet_output(x, c_noise, embedding)

    def unet_output(self, x: Tensor, c_noise: Tensor, embedding: Tensor) -> Tensor:
        """What the network gives for the arguments of `network`."""
        raise NotImplementedError


class UNet2D(DiffusersDenoiser):
    """D of diffusers' UNet2DModel.

    Images whose sides can't be halved often enough are filled up with zeros at the right and below.

    Args:
        shape, num_classes, conditioning: as for both.
        width: channels at full resolution.
        multipliers: of the width, one per resolution; the size is halved between them.
        layers: residual blocks per resolution.
    """

    choice = "unet_diffusers"

    @checked
    def __init__(
        self,
        shape: tuple[int, ...],
        num_classes: int,
        conditioning: Callable[..., Conditioning],
        width: Size = 64,
        multipliers: Annotated[Sequence[Annotated[int, Range(1, 64)]], Length(1, 16)] = (1, 2, 2),
        layers: Annotated[int, Range(1, 32)] = 2,
    ) -> None:
        super().__init__(shape, num_classes, conditioning)
        deeper = len(multipliers) - 1
        self._adopt(
            import_class("UNet2DModel")(
                in_channels=shape[0],
                out_channels=shape[0],
                block_out_channels=tuple(width * m for m in multipliers),
                layers_per_block=layers,
                down_block_types=("DownBlock2D", *["AttnDownBlock2D"] * deeper),
                up_block_types=(*["AttnUpBlock2D"] * deeper, "UpBlock2D"),
                norm_num_groups=groups(width),
                attention_head_dim=groups(width),
                class_embed_type="identity",
            )
        )
        self.context = nn.Linear(self.embed.dim, 4 * width)
        side = 2**deeper
        self.filling = (0, -shape[2] % side, 0, -shape[1] % side)

    def unet_output(self, x: Tensor, c_noise: Tensor, embedding: Tensor) -> Tensor:
        out = self.unet(F.pad(x, self.filling), c_noise, self.context(embedding), return_dict=False)[0]
        return out[..., : x.shape[-2], : x.shape[-1]]


class UNetSDXL(DiffusersDenoiser):
    """D of diffusers' UNet2DConditionModel in SDXL's configuration.

    Args:
        shape, num_classes, conditioning: as for both.
        width_factor: 1 is SDXL's 2,567,463,684 parameters; the nearest multiple of 1/32 is taken.
        transformer_layers: at the three resolutions (there are none on the way at the full one).
        tokens: in the place of SDXL's 77 of text, made of the embedding.
    """

    choice = "unet_diffusers_sdxl"
    time_ids: Tensor

    @checked
    def __init__(
        self,
        shape: tuple[int, ...],
        num_classes: int,
        conditioning: Callable[..., Conditioning],
        width_factor: Annotated[float, Range(0, 16, above=True)] = 0.1,
        transformer_layers: Annotated[Sequence[Annotated[int, Range(1, 64)]], Length(3, 3)] = (1, 2, 10),
        tokens: Annotated[int, Range(1, 4096)] = 4,
    ) -> None:
        super().__init__(shape, num_classes, conditioning)
        unit = max(1, round(32 * width_factor))
        self._adopt(sdxl_unet(shape[0], unit, transformer_layers))
        self.tokens = nn.Linear(self.embed.dim, tokens * 64 * unit)
        self.pooled = nn.Linear(self.embed.dim, 40 * unit)
        height, width = shape[1:]
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32)  # original, crop, target
        self.register_buffer("time_ids", sizes, persistent=False)

    def unet_output(self, x: Tensor, c_noise: Tensor, embedding: Tensor) -> Tensor:
        text = self.tokens(embedding).view(len(x), -1, self.unet.config.cross_attention_dim)  # type: ignore[union-attr]
        added = {"text_embeds": self.pooled(embedding), "time_ids": self.time_ids.expand(len(x), -1)}
        return self.unet(x, c_noise, text, added_cond_kwargs=added, return_dict=False)[0]


def sdxl_unet(channels: int, unit: int = 32, transformer_layers: Sequence[int] = (1, 2, 10)) -> Any:
    """The network of stabilityai/stable-diffusion-xl-base-1.0 (its unet/config.json) for images with `channels`.

    Args:
        channels: of the image, 4 for SDXL's latents.
        unit: groups of its normalisations, the measure of all its widths; 32 is SDXL's.
        transformer_layers: at the three resolutions.
    """
    return import_class("UNet2DConditionModel")(
        sample_size=128,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(10 * unit, 20 * unit, 40 * unit),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=tuple(transformer_layers),
        attention_head_dim=(5, 10, 20),  # the number of heads, whatever the name says
        cross_attention_dim=64 * unit,
        use_linear_projection=True,
        norm_num_groups=unit,
        addition_embed_type="text_time",
        addition_time_embed_dim=8 * unit,
        projection_class_embeddings_input_dim=(40 + 6 * 8) * unit,
    )


def import_class(name: str) -> Any:
    """A class of diffusers.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import diffusers
    except ImportError as error:
        raise ConfigError("denoiser", name, f"needs diffusers and transformers: {how_to_install('latent')}") from error
    return getattr(diffusers, name)
