r"""Augmentation that does not leak into the model's samples (Karras et al. 2020, arXiv:2006.06676; 2022, appendix F.2).

A training image is changed by random numbers a, with probability p, and the model is told them:

    x' = A(a)·x,      trained is p(x'; σ, c, a),      embedding = embed(σ, c) + W·a,      W = 0 at the start.

Everything that is measured or sampled has a = 0: the density of the images as they are. Where there are few images the
flow learns from the changed ones what images have in common, instead of learning the few by heart.
"""

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowdiff.data.quantise import centres, to_levels
from flowdiff.options import Range, Share, checked


class Augmentation(nn.Module):
    """Changes the images of a training step. This one changes none; a subclass gives `numbers` and `change`.

    Args:
        context_dim: length of the embedding of σ and class.
    """

    numbers = 0

    def __init__(self, context_dim: int) -> None:
        super().__init__()
        self.told = nn.Linear(self.numbers, context_dim, bias=False) if self.numbers else None
        if self.told is not None:
            nn.init.zeros_(self.told.weight)

    def change(self, k: Tensor, levels: int) -> tuple[Tensor, Tensor]:
        """Levels k (B, C, H, W) to changed ones, and a (B, numbers), 0 where nothing was changed."""
        raise NotImplementedError

    def forward(self, k: Tensor, levels: int | None) -> tuple[Tensor, Tensor | None]:
        """A batch as the data give it to the batch to train on, and W·a (B, context_dim) or None.

        Random numbers come from torch's global generator.
        """
        if self.told is None:
            return k, None
        assert levels is not None, "points have no levels: training refuses them"
        k, a = self.change(k, levels)
        return k, self.told(a)


class Affine(Augmentation):
    r"""Small random turns, stretches, shears and shifts of images, whose pixels become whole levels again.

    Each of the six numbers is normal: the angle, the logarithms of width and height, the shear and two shifts.

    Args:
        context_dim: length of the embedding of σ and class.
        probability: that an image is changed at all.
        rotation: standard deviation of the angle, in radians.
        stretch: of the logarithms of width and height.
        shear: of the tangent of the shear.
        shift: of the shifts, as shares of half the image.

    Raises:
        ConfigError: a probability outside of [0, 1], a negative standard deviation.
    """

    numbers = 6

    @checked
    def __init__(
        self,
        context_dim: int,
        probability: Share = 0.7,
        rotation: Annotated[float, Range(0, 10)] = 0.12,
        stretch: Annotated[float, Range(0, 10)] = 0.06,
        shear: Annotated[float, Range(0, 10)] = 0.12,
        shift: Annotated[float, Range(0, 10)] = 0.08,
    ) -> None:
        super().__init__(context_dim)
        self.probability = float(probability)
        self.deviations = [rotation, stretch, stretch, shear, shift, shift]

    def change(self, k: Tensor, levels: int) -> tuple[Tensor, Tensor]:
        a = torch.randn(len(k), self.numbers, device=k.device)
        a = a * (torch.rand(len(k), 1, device=k.device) < self.probability)
        angle, width, height, shear, right, down = (a * torch.tensor(self.deviations, device=k.device)).unbind(1)
        matrix = torch.stack(
            [
                torch.stack([width.exp() * angle.cos(), shear - width.exp() * angle.sin(), right], 1),
                torch.stack([height.exp() * angle.sin(), height.exp() * angle.cos(), down], 1),
            ],
            1,
        )
        grid = F.affine_grid(matrix, list(k.shape), align_corners=False)
        x = F.grid_sample(centres(k, levels), grid, mode="bicubic", padding_mode="border", align_corners=False)
        changed = (a != 0).any(1).view(-1, 1, 1, 1)
        return torch.where(changed, to_levels(x, levels).to(k.dtype), k), a
