r"""Denoisers without a density: a free network F in EDM's preconditioning (Karras et al. 2022, eq. 7, table 1).

D(x, σ) = c_skip·x + c_out·F(c_in·x; c_noise, σ, c),
c_skip = σ_data²/(σ² + σ_data²),   c_out = σ·σ_data/√(σ² + σ_data²),   c_in = 1/√(σ² + σ_data²),   c_noise = ¼ ln σ.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from flowdiff.data.statistics import DataStatistics
from flowdiff.denoisers.base import UNPERTURBED, Denoiser, Perturbation, Sigma, batch_sigma
from flowdiff.nn.embeddings import Conditioning
from flowdiff.nn.networks import ResidualMLP
from flowdiff.options import Layers, Size, checked
from flowdiff.tensors import per_sample


class FreeDenoiser(Denoiser):
    """D of a network F; a subclass gives `network`.

    Args:
        shape: of one sample.
        num_classes: K, 0 for none.
        conditioning: makes the embedding of σ and class.
    """

    sigma_data: Tensor

    def __init__(self, shape: tuple[int, ...], num_classes: int, conditioning: Callable[..., Conditioning]) -> None:
        embed = conditioning(num_classes=num_classes)
        super().__init__(shape, embed.num_classes)
        self.register_buffer("sigma_data", torch.tensor(0.5))
        self.embed = embed

    def fit(self, statistics: DataStatistics) -> None:
        self.sigma_data.fill_(statistics.sigma_data)

    def network(self, x: Tensor, c_noise: Tensor, embedding: Tensor, dropout: float = 0.0) -> Tensor:
        """F: (B, *shape) to the same shape.

        Args:
            x: c_in·x, (B, *shape).
            c_noise: (B,), for a network with an embedding of σ of its own.
            embedding: of σ and the class, (B, E).
            dropout: share of the hidden values to drop.
        """
        raise NotImplementedError

    def denoise(
        self, x: Tensor, sigma: Sigma, labels: Tensor | None = None, perturbation: Perturbation = UNPERTURBED
    ) -> Tensor:
        levels = batch_sigma(sigma, x)
        embedding = self.embed(levels, self._classes(x, labels, perturbation.drop), perturbation.shift)
        c_noise, levels = levels.log() / 4, per_sample(levels, x)
        total = (levels.square() + self.sigma_data.square()).sqrt()
        c_skip, c_out = (self.sigma_data / total).square(), levels * self.sigma_data / total
        return c_skip * x + c_out * self.network(x / total, c_noise, embedding, perturbation.dropout).to(x.dtype)


class MLPDenoiser(FreeDenoiser):
    """D of a residual MLP, the network of `flow=coupling`, that sees and gives all coordinates.

    Args:
        shape, num_classes, conditioning: as for every free denoiser.
        width, depth: of the hidden layers, and the number of residual blocks.
    """

    @checked
    def __init__(
        self,
        shape: tuple[int, ...],
        num_classes: int,
        conditioning: Callable[..., Conditioning],
        width: Size = 512,
        depth: Layers = 4,
    ) -> None:
        super().__init__(shape, num_classes, conditioning)
        dim = math.prod(shape)
        self.mlp = ResidualMLP(dim, dim, self.embed.dim, width, depth)

    def network(self, x: Tensor, c_noise: Tensor, embedding: Tensor, dropout: float = 0.0) -> Tensor:
        return self.mlp(x.flatten(1), embedding, dropout).view_as(x)
