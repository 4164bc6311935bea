"""The blocks of a U-Net (Ronneberger et al. 2015)."""

from torch import Tensor, nn
from torch.nn import functional as F

from flowdiff.nn.dropout import drop_values


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, convolution, twice, with FiLM by the embedding between."""

    def __init__(self, inputs: int, outputs: int, context_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups(inputs), inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.film = nn.Linear(context_dim, 2 * outputs)
        self.norm2 = nn.GroupNorm(groups(outputs), outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor, dropout: float = 0.0) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.film(embedding)[:, :, None, None].chunk(2, 1)
        h = self.conv2(drop_values(F.silu(self.norm2(h) * (1 + scale) + shift), dropout))
        return self.skip(x) + h


def groups(channels: int) -> int:
    """The largest number of groups ≤ 8 that divides the channels."""
    return next(g for g in range(min(8, channels), 0, -1) if channels % g == 0)
