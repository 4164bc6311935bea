"""The baseline without a density: a small U-Net (Ronneberger et al. 2015) as the free network F of EDM."""

from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowdiff.denoisers.free import FreeDenoiser
from flowdiff.errors import ConfigError
from flowdiff.nn.embeddings import Conditioning
from flowdiff.nn.unet import ResidualBlock, groups
from flowdiff.options import Length, Range, Size, checked


class UNetDenoiser(FreeDenoiser):
    """D of a U-Net with one residual block per resolution on the way down and up.

    Args:
        shape: (C, H, W).
        num_classes: K, 0 for none.
        conditioning: makes the embedding of σ and class.
        width: channels at full resolution.
        multipliers: of the width, one per resolution; the size is halved between them (rounding up).
    """

    @checked
    def __init__(
        self,
        shape: tuple[int, ...],
        num_classes: int,
        conditioning: Callable[..., Conditioning],
        width: Size = 32,
        multipliers: Annotated[Sequence[Annotated[int, Range(1, 64)]], Length(1, 16)] = (1, 2, 3),
    ) -> None:
        if len(shape) != 3:
            raise ConfigError("denoiser", "unet", f"needs images (C, H, W), not data of shape {tuple(shape)}")
        super().__init__(shape, num_classes, conditioning)
        self.context = nn.Sequential(nn.Linear(self.embed.dim, 4 * width), nn.SiLU())
        channels = [width * m for m in multipliers]
        self.first = nn.Conv2d(shape[0], width, 3, padding=1)
        self.down = nn.ModuleList()
        previous = width
        for c in channels:
            self.down.append(ResidualBlock(previous, c, 4 * width))
            previous = c
        self.middle = ResidualBlock(previous, previous, 4 * width)
        self.up = nn.ModuleList()
        for c in reversed(channels):
            self.up.append(ResidualBlock(previous + c, c, 4 * width))
            previous = c
        self.norm = nn.GroupNorm(groups(previous), previous)
        self.last = nn.Conv2d(previous, shape[0], 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def network(self, x: Tensor, c_noise: Tensor, embedding: Tensor, dropout: float = 0.0) -> Tensor:
        context = self.context(embedding)
        h, skips = self.first(x), []
        for i, block in enumerate(self.down):
            h = block(h, context, dropout)
            skips.append(h)
            if i < len(self.down) - 1:
                h = F.avg_pool2d(h, 2, ceil_mode=True)
        h = self.middle(h, context, dropout)
        for block in self.up:
            skip = skips.pop()
            if h.shape[-2:] != skip.shape[-2:]:
                h = F.interpolate(h, size=skip.shape[-2:], mode="nearest")
            h = block(torch.cat([h, skip], 1), context, dropout)
        return self.last(F.silu(self.norm(h)))
