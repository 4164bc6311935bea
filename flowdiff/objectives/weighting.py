r"""Weights of the denoising error over σ, beside EDM's λ(σ): what a loss counts in place of its error e(σ).

    learned    e/exp(u(σ)) + u(σ)        u a small network of log σ, 0 at the start

the negative log-likelihood of an error of unknown size (Karras et al. 2024, arXiv:2312.02696, equation 21; Kendall et
al. 2018, arXiv:1705.07115). Its minimum by u is log E[e(σ)]: then every σ has the same say in the gradient, however
small its errors have become. u is trained with the model and kept in a checkpoint, for a run that goes on; no loaded or
exported model has it.
"""

from torch import Tensor, nn

from flowdiff.nn.bounds import zero_linear
from flowdiff.nn.embeddings import NoiseEmbedding
from flowdiff.options import Size, checked


class Weighting(nn.Module):
    """How the denoising errors of different σ count in training. A subclass gives `forward`."""

    def forward(self, error: Tensor, sigma: Tensor) -> Tensor:
        """Errors (B,), which have EDM's weight, and σ (B,) to the terms that are trained, (B,)."""
        raise NotImplementedError


class LearnedWeighting(Weighting):
    """e/exp(u(σ)) + u(σ) in training; in a validation e, so that its losses can be compared.

    Args:
        width: of the hidden layer of u, and the number of sines and cosines of log σ.
    """

    @checked
    def __init__(self, width: Size = 64) -> None:
        super().__init__()
        self.width = width
        self.embed, self.last = NoiseEmbedding(width), zero_linear(width, 1)

    def log_error(self, sigma: Tensor) -> Tensor:
        """u of σ (B,), (B,)."""
        return self.last(self.embed(sigma.to(self.embed.frequencies.dtype)))[:, 0]

    def forward(self, error: Tensor, sigma: Tensor) -> Tensor:
        if not self.training:
            return error
        u = self.log_error(sigma)
        return error * (-u).exp() + u
