r"""How σ and the class c enter a flow.

The noise level is seen through c_noise = ¼ log σ (EDM) and sines and cosines of it; the class through a row of a
table. The null class of classifier-free guidance is a row of its own, number K, never class K − 1.

    film     the flow's layers are modulated by the embedding (FiLM: Perez et al. 2018): p(x; σ, c)
    none     the same without the class: p(x; σ)
    concat   the flow's input is [x, embed(σ), embed(c)] and only the gradient by x is used: a joint density,
             whose score is valid and whose likelihood is not one of x
"""

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from flowdiff.options import Range, Size, checked


class NoiseEmbedding(nn.Module):
    """σ (B,) to (B, dim): cos and sin of 2^k·¼ log σ, k ∈ [−2, 3], then a SiLU layer.

    The lowest frequencies see the whole range of σ ∈ [0.002, 80] as less than one period, so that the rarely drawn
    ends of it are extrapolated smoothly.
    """

    frequencies: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2 ** torch.linspace(-2, 3, max(2, dim // 2)))
        self.layer = nn.Linear(2 * len(self.frequencies), dim)

    def forward(self, sigma: Tensor) -> Tensor:
        phase = sigma.log()[:, None] / 4 * self.frequencies * math.pi / 2
        return nn.functional.silu(self.layer(torch.cat([phase.cos(), phase.sin()], 1)))


class Conditioning(nn.Module):
    """σ and class to one vector.

    Attributes:
        dim: its length E.
        num_classes: the classes that are looked at, 0 for none.
        joint: whether the vector is an input of the density (concat) instead of a condition (film, none).
    """

    joint = False

    @checked
    def __init__(
        self, num_classes: int, sigma_embed_dim: Annotated[int, Range(2, 65536)] = 64, cond_embed_dim: Size = 64
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.noise = NoiseEmbedding(sigma_embed_dim)
        self.dim = sigma_embed_dim
        if num_classes:
            self.table = nn.Embedding(num_classes + 1, cond_embed_dim)
            self.dim += cond_embed_dim

    def forward(self, sigma: Tensor, classes: Tensor, shift: Tensor | None = None) -> Tensor:
        """σ (B,), classes (B,) in [0, K], K the null class, to (B, dim); a shift (B, dim) is added to it."""
        embedded = self.noise(sigma)
        if self.num_classes:
            embedded = torch.cat([embedded, self.table(classes)], 1)
        return embedded if shift is None else embedded + shift


class FiLM(Conditioning):
    """σ and the class modulate every layer."""


class Unconditional(Conditioning):
    """Only σ modulates the layers; the data's classes are dropped, and cond_embed_dim with them."""

    @checked
    def __init__(
        self, num_classes: int, sigma_embed_dim: Annotated[int, Range(2, 65536)] = 64, cond_embed_dim: Size = 64
    ) -> None:
        super().__init__(0, sigma_embed_dim)


class Concat(Conditioning):
    """The embedding is part of the flow's input: a joint density of x and the embedding."""

    joint = True
