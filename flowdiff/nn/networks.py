r"""The networks inside couplings. Smooth (SiLU), so that the score of a flow has a derivative; the last layer is 0.

σ and the class enter every block by FiLM: h + W₂·φ((1 + a(e))·φ'(W₁h) + b(e)), e the embedding.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowdiff.nn.bounds import silence, soft_limit
from flowdiff.nn.dropout import drop_values


class ResidualNet(nn.Module):
    """Residual blocks of what `layer` makes, and FiLM by an embedding (B, E); 0 at initialisation.

    Args:
        inputs, outputs: numbers of coordinates or channels.
        context_dim: E.
        width: of the hidden layers.
        depth: number of residual blocks.
    """

    def __init__(self, inputs: int, outputs: int, context_dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.first = self.layer(inputs, width)
        self.film = nn.Linear(context_dim, 2 * width * depth)
        self.inner = nn.ModuleList(self.layer(width, width) for _ in range(depth))
        self.outer = nn.ModuleList(self.layer(width, width) for _ in range(depth))
        self.last = silence(self.layer(width, outputs))

    @staticmethod
    def layer(inputs: int, outputs: int) -> nn.Module:
        """An affine map of (B, inputs, …) to (B, outputs, …)."""
        raise NotImplementedError

    def forward(self, x: Tensor, embedding: Tensor, dropout: float = 0.0) -> Tensor:
        return self.last(self.hidden(x, embedding, dropout)).to(x.dtype)

    def hidden(self, x: Tensor, embedding: Tensor, dropout: float = 0.0) -> Tensor:
        """What the last layer sees, (B, width, …)."""
        h = self._begin(soft_limit(x))
        terms = self._terms(embedding).chunk(2 * len(self.inner), 1)
        for i, (inner, outer) in enumerate(zip(self.inner, self.outer, strict=True)):
            scale, shift = terms[2 * i : 2 * i + 2]
            r = F.silu(torch.addcmul(shift, inner(F.silu(h)), 1 + scale))
            h = h + outer(drop_values(r, dropout))
        return F.silu(h)

    def _begin(self, x: Tensor) -> Tensor:
        return self.first(x)

    def _terms(self, embedding: Tensor) -> Tensor:
        return self.film(embedding)


class ResidualMLP(ResidualNet):
    """Linear layers: (B, inputs) to (B, outputs)."""

    @staticmethod
    def layer(inputs: int, outputs: int) -> nn.Module:
        return nn.Linear(inputs, outputs)


class ResidualConvNet(ResidualNet):
    """3×3 convolutions: (B, inputs, H, W) to (B, outputs, H, W).

    Args:
        inputs, outputs, context_dim, width, depth: as for every one.
        size: (H, W): the first layer adds a learned bias per pixel, so that the network knows where it is.
    """

    def __init__(
        self, inputs: int, outputs: int, context_dim: int, width: int, depth: int, size: tuple[int, int]
    ) -> None:
        super().__init__(inputs, outputs, context_dim, width, depth)
        self.position = nn.Parameter(torch.zeros(width, *size))

    @staticmethod
    def layer(inputs: int, outputs: int) -> nn.Module:
        return nn.Conv2d(inputs, outputs, 3, padding=1)

    def _begin(self, x: Tensor) -> Tensor:
        return self.first(x.contiguous(memory_format=torch.channels_last)) + self.position

    def _terms(self, embedding: Tensor) -> Tensor:
        return self.film(embedding)[:, :, None, None]


class ConvNet(nn.Module):
    """(B, inputs, H, W) and an embedding (B, E) to (B, outputs, H, W): three convolutions; 0 at initialisation.

    Args:
        inputs, outputs: channels.
        context_dim: E.
        width: hidden channels.
        size: (H, W): the FiLM of the first hidden layer adds a learned bias per pixel, so that the network knows
            where it is.
        kernel: of the middle convolution, 1 or 3; the other two are 3×3.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        context_dim: int,
        width: int,
        size: tuple[int, int],
        kernel: int = 3,
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, width, 3, padding=1)
        self.middle = nn.Conv2d(width, width, kernel, padding=kernel // 2)
        self.last = silence(nn.Conv2d(width, outputs, 3, padding=1))
        self.position = nn.Parameter(torch.zeros(width, *size))
        self.films = nn.ModuleList(nn.Linear(context_dim, 2 * width) for _ in range(2))

    def forward(self, x: Tensor, embedding: Tensor, dropout: float = 0.0) -> Tensor:
        h = self.first(soft_limit(x).contiguous(memory_format=torch.channels_last)) + self.position
        h = F.silu(self._film(0, h, embedding))
        r = F.silu(self._film(1, self.middle(h), embedding))
        h = h + drop_values(r, dropout)
        return self.last(h).to(x.dtype)

    def _film(self, i: int, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.films[i](embedding)[:, :, None, None].chunk(2, 1)
        return h * (1 + scale) + shift
