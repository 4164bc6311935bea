r"""Couplings of the channels of the unshuffled image by small convolutional networks, near the pixels.

A step views the image (C, H, W) as (C·f², H/f, W/f) (pixel unshuffle: Shi et al. 2016), f from a list in turn, and is

    1×1 convolution in PLU form  →  scale and shift per pixel by FiLM  →  affine coupling of half the channels

(Glow's step: Kingma & Dhariwal 2018, with σ and the class instead of actnorm), then the activation.
The scale per pixel lets the flow shrink the pixels that are the same in every image.
"""

import functools
import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowdiff.errors import ConfigError
from flowdiff.flows.base import ActivationFactory, Composite, Flow, Step
from flowdiff.flows.context import Context
from flowdiff.flows.gated import GatedActivation
from flowdiff.flows.linear import AffineFiLM, PLULinear
from flowdiff.nn.bounds import soft_bound
from flowdiff.nn.networks import ConvNet
from flowdiff.options import Layers, Length, LogScale, Range, Size, checked
from flowdiff.tensors import per_sample

Network = Callable[[int, int], nn.Module]
"""Makes a network of so many input and output channels."""


class ChannelMixing(Step):
    """A 1×1 convolution in PLU form on (B, C, H, W)."""

    def __init__(self, channels: int, seed: int) -> None:
        super().__init__()
        self.linear = PLULinear(channels, seed)

    def terms(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        y, terms = self.linear.terms(x.movedim(1, -1), context)
        return y.movedim(-1, 1), terms

    def inverse(self, z: Tensor, context: Context) -> Tensor:
        return self.linear.inverse(z.movedim(1, -1), context).movedim(-1, 1)


class ConvCoupling(Step):
    """y_b = exp(s)·x_b + t with (s, t) = κ·network(x_a), for two halves a, b of the channels.

    Args:
        channels: C, even.
        network: makes the network, given the numbers of its input and output channels.
        swap: which half moves.
        max_log_scale: soft bound of |s|.
    """

    def __init__(self, channels: int, network: Network, swap: bool, max_log_scale: float = 2.0) -> None:
        super().__init__()
        half = channels // 2
        self.sizes = [half, channels - half]
        self.swap = swap
        seen, moved = reversed(self.sizes) if swap else self.sizes
        self.network = network(seen, 2 * moved)
        self.max_log_scale = max_log_scale

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x.split(self.sizes, 1)
        return (second, first) if self.swap else (first, second)

    def _join(self, seen: Tensor, moved: Tensor) -> Tensor:
        return torch.cat([moved, seen] if self.swap else [seen, moved], 1)

    def _terms(self, seen: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        terms = per_sample(context.kappa, seen) * self.network(seen, context.embedding, context.dropout)
        s, t = terms.chunk(2, 1)
        return soft_bound(s, self.max_log_scale), t

    def terms(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        seen, moved = self._split(x)
        s, t = self._terms(seen, context)
        return self._join(seen, torch.addcmul(t, s.exp(), moved)), s

    def inverse(self, z: Tensor, context: Context) -> Tensor:
        seen, moved = self._split(z)
        s, t = self._terms(seen, context)
        return self._join(seen, (moved - t) * (-s).exp())


class Unshuffled(Flow):
    """Steps on the image unshuffled by f: (B, C, H, W) seen as (B, C·f², H/f, W/f)."""

    def __init__(self, factor: int, steps: Sequence[Flow], size: tuple[int, int, int]) -> None:
        super().__init__()
        self.factor = factor
        self.inner = Composite(steps, size)

    def forward(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        z, logdet = self.inner(F.pixel_unshuffle(x, self.factor), context)
        return F.pixel_shuffle(z, self.factor), logdet

    def inverse(self, z: Tensor, context: Context) -> Tensor:
        return F.pixel_shuffle(self.inner.inverse(F.pixel_unshuffle(z, self.factor), context), self.factor)


class ConvFlow(Composite):
    """n_flows × [ChannelMixing, AffineFiLM per pixel, ConvCoupling, GatedActivation] on unshuffled images.

    Args:
        shape: (C, H, W); H and W must be divisible by every factor.
        context_dim: length of the embedding of σ and class.
        activation: makes the activation of a step.
        n_flows: number of steps.
        width: of the convolutional networks.
        factors: unshuffling factors, used in turn.
        max_log_scale: soft bound of a coupling's log-scales.
    """

    @checked
    def __init__(
        self,
        shape: tuple[int, ...],
        context_dim: int,
        activation: ActivationFactory,
        n_flows: Layers = 12,
        width: Size = 48,
        factors: Annotated[Sequence[Annotated[int, Range(1, 64)]], Length(1, 16)] = (2, 4),
        max_log_scale: LogScale = 2.0,
    ) -> None:
        if len(shape) != 3:
            raise ConfigError("flow", "conv", f"needs images (C, H, W), not data of shape {tuple(shape)}")
        channels, height, breadth = shape
        for f in factors:
            if f < 1 or height % f or breadth % f or channels * f * f < 2:
                raise ConfigError("flow.factors", list(factors), f"each must divide the image size {height}×{breadth}")
        steps = []
        for i in range(n_flows):
            f = factors[i % len(factors)]
            size = (channels * f * f, height // f, breadth // f)
            swap = (i // len(factors)) % 2 == 1
            network = functools.partial(ConvNet, context_dim=context_dim, width=width, size=size[1:])
            step = [
                ChannelMixing(size[0], seed=i),
                AffineFiLM(size, context_dim),
                ConvCoupling(size[0], network, swap, max_log_scale),
                GatedActivation(activation, size),
            ]
            steps.append(Unshuffled(f, step, size))
        super().__init__(steps, shape)

    def forward(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """As every composite, but the image stays unshuffled between steps of the same factor."""
        h, terms = x, []
        for factor, steps in itertools.groupby(self.steps, key=operator.attrgetter("factor")):
            h = F.pixel_unshuffle(h, factor)
            for step in steps:
                h, logdet = step.inner(h, context)  # type: ignore[operator]
                terms.append(logdet)
            h = F.pixel_shuffle(h, factor)
        return h, torch.stack(terms, 1).sum(1)
