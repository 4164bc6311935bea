r"""Autoregressive transformer flow (TarFlow: Zhai et al. 2024, arXiv:2412.06329) given σ and the class as in iTARFlow
(arXiv:2604.20041).

A sample is cut into T patches x_0 … x_{T−1} of P coordinates. A block shifts and scales every patch by what a causal
transformer (`nn.attention`) makes of the patches before it, and of e, the embedding of σ and class:

    (α_t, μ_t) = κ(σ)·network(x_{<t}, e),  α softly bounded       z_t = (x_t − μ_t)·exp(−α_t),       log|det| = −Σ α

all t in one pass. Every second block reads the patches in the reverse order. Its inverse,
x_t = z_t·exp(α_t) + μ_t, is found in one of two ways:

    sequential   t = 0 … T−1 in turn, with a cache of keys and values: T steps of one token
    Jacobi       x ← z·exp(α(x)) + μ(x), from x = z, until no value moves by more than a tolerance (Song et al. 2021,
                 arXiv:2002.03629): passes over all patches at once. After k of them the first k patches are exact,
                 so T are always enough, and often far fewer.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from flowdiff.flows.base import ActivationFactory, Composite, Flow, Step
from flowdiff.flows.context import Context
from flowdiff.flows.gated import GatedActivation
from flowdiff.flows.patches import patch_size
from flowdiff.nn.attention import CausalTransformer, Decoder
from flowdiff.nn.bounds import soft_bound
from flowdiff.options import Count, Layers, LogScale, Positive, Size, checked


class AutoregressiveBlock(Step):
    """One TarFlow block on patches (B, T, P).

    Args:
        network: (B, T, P) and e to (B, T, 2P), causal.
        reverse: read the patches from the last to the first.
        max_log_scale: soft bound of |α|.
        jacobi_tolerance: of the inverse by Jacobi's iteration; None: sequential.
    """

    def __init__(
        self, network: CausalTransformer, reverse: bool, max_log_scale: float, jacobi_tolerance: float | None
    ) -> None:
        super().__init__()
        self.network = network
        self.reverse = reverse
        self.max_log_scale = max_log_scale
        self.jacobi_tolerance = jacobi_tolerance

    def _order(self, x: Tensor) -> Tensor:
        return x.flip(1) if self.reverse else x

    def _terms(self, output: Tensor, kappa: Tensor) -> tuple[Tensor, Tensor]:
        """α and μ from the network's output."""
        alpha, mu = (kappa * output).chunk(2, -1)
        return soft_bound(alpha, self.max_log_scale), mu

    def terms(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        x = self._order(x)
        output = self.network(x, context.embedding, context.dropout)
        alpha, mu = self._terms(output, context.kappa[:, None, None])
        return self._order((x - mu) * (-alpha).exp()), -alpha

    def inverse(self, z: Tensor, context: Context) -> Tensor:
        """The x with forward(x) = z, without gradients."""
        z = self._order(z)
        tolerance = self.jacobi_tolerance
        x = self._sequential(z, context) if tolerance is None else self._jacobi(z, context, tolerance)
        return self._order(x)

    def _sequential(self, z: Tensor, context: Context) -> Tensor:
        decoder = Decoder(self.network, context.embedding)
        patches: list[Tensor] = []
        for patch in z.unbind(1):
            output = decoder(patches[-1] if patches else None).to(z.dtype)
            alpha, mu = self._terms(output, context.kappa[:, None])
            patches.append(patch * alpha.exp() + mu)
        return torch.stack(patches, 1)

    def _jacobi(self, z: Tensor, context: Context, tolerance: float) -> Tensor:
        """Rows that have converged are left alone, so that a row's result doesn't depend on its neighbours."""
        x, moving = z.clone(), torch.arange(len(z), device=z.device)
        for _ in range(z.shape[1]):
            old = x[moving]
            output = self.network(old, context.embedding[moving])
            alpha, mu = self._terms(output, context.kappa[moving, None, None])
            new = z[moving] * alpha.exp() + mu
            x[moving] = new
            moving = moving[((new - old).abs() > tolerance).flatten(1).any(1)]
            if not len(moving):
                break
        return x


class TransformerFlow(Flow):
    """n_flows × [AutoregressiveBlock, GatedActivation] on the patches of images (C, H, W) or vectors (d,).

    Args:
        shape: shape of a sample.
        context_dim: length of the embedding of σ and class.
        activation: makes the activation of a step.
        n_flows: number of blocks; two at least for every patch to see every other.
        width, depth, heads: of each block's transformer; `depth` is its layers.
        patch: side of a square patch of an image, length of one of a vector. None: the smallest one, from 2 on for
            images, that leaves at most 64 patches.
        max_log_scale: soft bound of a block's log-scales.
        inverse_chunk: samples that are inverted together. It bounds the cache of keys and values, which takes
            2 · depth · inverse_chunk · T · width numbers, whatever the batch.
        jacobi_tolerance: invert by Jacobi's iteration until no value of a block moves by more; None: sequentially.

    Raises:
        ConfigError: data that can't be cut into such patches, or a value out of range.
    """

    @checked
    def __init__(
        self,
        shape: tuple[int, ...],
        context_dim: int,
        activation: ActivationFactory,
        n_flows: Layers = 4,
        width: Size = 64,
        depth: Layers = 2,
        heads: Layers = 4,
        patch: Size | None = None,
        max_log_scale: LogScale = 2.0,
        inverse_chunk: Count = 256,
        jacobi_tolerance: Positive | None = None,
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.patch = patch_size("transformer", self.shape, patch)
        length = self.patch if len(shape) == 1 else shape[0] * self.patch**2
        size = (math.prod(shape) // length, length)
        self.inverse_chunk = inverse_chunk
        steps: list[Flow] = []
        for i in range(n_flows):
            network = CausalTransformer(*size, 2 * length, context_dim, width, depth, heads)
            steps += [
                AutoregressiveBlock(network, i % 2 == 1, max_log_scale, jacobi_tolerance),
                GatedActivation(activation, size),
            ]
        self.blocks = Composite(steps, size)

    def _patches(self, x: Tensor) -> Tensor:
        """Samples as patches (B, T, P); a patch of an image holds its channels and pixels."""
        if len(self.shape) == 1:
            return x.unflatten(1, (-1, self.patch))
        return F.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2)

    def _join(self, patches: Tensor) -> Tensor:
        """The inverse of `_patches`."""
        if len(self.shape) == 1:
            return patches.flatten(1)
        grid = [side // self.patch for side in self.shape[1:]]
        return F.pixel_shuffle(patches.transpose(1, 2).unflatten(2, grid), self.patch)

    def forward(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        z, logdet = self.blocks(self._patches(x), context)
        return self._join(z), logdet

    @torch.no_grad()
    def inverse(self, z: Tensor, context: Context) -> Tensor:
        """The x with forward(x) = z, `inverse_chunk` samples at a time, without gradients."""
        chunks = zip(self._patches(z).split(self.inverse_chunk), context.split(self.inverse_chunk), strict=True)
        return self._join(torch.cat([self.blocks.inverse(part, of) for part, of in chunks]))
