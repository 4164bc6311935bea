r"""Glow (Kingma & Dhariwal 2018, arXiv:1807.03039), given the noise level and the class.

A level squeezes the image, (C, H, W) to (4C, H/2, W/2), and takes n_flows steps of

    actnorm  →  1×1 convolution in PLU form  →  affine coupling of half the channels  →  activation.

Then half of its channels are factored out: they are latents already, and the next level works on the other half
(multi-scale: Real NVP, Dinh et al. 2017, arXiv:1605.08803, §3.6). The last coupling of a level moves the half that
leaves, seen from the half that stays: that is Glow's learned prior of the factored-out latents. The networks of the
couplings are Glow's (3×3, 1×1 and 3×3 convolutions). σ and the class enter them by FiLM, and each level by a scale and
shift per pixel at its start.

The latent has the shape of the image: what was factored out goes back to the pixels it was squeezed from.
"""

import functools
from typing import Annotated

import torch
from torch import Tensor

from flowdiff.errors import ConfigError
from flowdiff.flows.actnorm import ActNorm
from flowdiff.flows.base import ActivationFactory, Flow
from flowdiff.flows.context import Context
from flowdiff.flows.conv import ChannelMixing, ConvCoupling, Unshuffled
from flowdiff.flows.gated import GatedActivation
from flowdiff.flows.linear import AffineFiLM
from flowdiff.nn.networks import ConvNet
from flowdiff.options import Layers, LogScale, Range, Size, checked

MOST_LEVELS = 3  # of levels: null


class Factored(Flow):
    """A flow of the first half of the channels (B, C, H, W); the other half is factored out, i.e. left as it is."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        kept, latent = x.chunk(2, 1)
        z, logdet = self.flow(kept, context)
        return torch.cat([z, latent], 1), logdet

    def inverse(self, z: Tensor, context: Context) -> Tensor:
        kept, latent = z.chunk(2, 1)
        return torch.cat([self.flow.inverse(kept, context), latent], 1)


class GlowFlow(Unshuffled):
    """Levels of n_flows × [ActNorm, ChannelMixing, ConvCoupling, GatedActivation] on squeezed images.

    Args:
        shape: (C, H, W), H and W even.
        context_dim: length of the embedding of σ and class.
        activation: makes the activation of a step.
        n_flows: number of steps of a level.
        levels: how often the image is halved; None: as often as it can be, at most 3 times.
        width: of the convolutional networks.
        max_log_scale: soft bound of a coupling's log-scales.

    Raises:
        ConfigError: data that aren't images of even height and width, or can't be halved `levels` times.
    """

    @checked
    def __init__(
        self,
        shape: tuple[int, ...],
        context_dim: int,
        activation: ActivationFactory,
        n_flows: Layers = 6,
        levels: Annotated[int, Range(1, 32)] | None = None,
        width: Size = 64,
        max_log_scale: LogScale = 2.0,
    ) -> None:
        if len(shape) != 3 or shape[1] % 2 or shape[2] % 2:
            allowed = f"needs images (C, H, W) of even height and width, not data of shape {tuple(shape)}"
            raise ConfigError("flow", "glow", allowed)
        channels, height, breadth = shape
        possible = halvings(height, breadth)
        levels = min(possible, MOST_LEVELS) if levels is None else levels
        if levels > possible:
            allowed = f"images of {height}×{breadth} can be halved {possible} time{'s' * (possible > 1)}, no more"
            raise ConfigError("flow.levels", levels, allowed)
        size = (4 * channels, height // 2, breadth // 2)
        network = functools.partial(ConvNet, context_dim=context_dim, width=width, size=size[1:], kernel=1)
        steps: list[Flow] = [AffineFiLM(size, context_dim)]
        for i in range(n_flows):
            steps += [
                ActNorm(size[0]),
                ChannelMixing(size[0], seed=i),
                ConvCoupling(size[0], network, (n_flows - 1 - i) % 2 == 1, max_log_scale),
                GatedActivation(activation, size),
            ]
        if levels > 1:
            kept = (size[0] // 2, *size[1:])
            steps.append(Factored(GlowFlow(kept, context_dim, activation, n_flows, levels - 1, width, max_log_scale)))
        super().__init__(2, steps, size)


def halvings(*lengths: int) -> int:
    """How often all lengths can be halved."""
    return min((n & -n).bit_length() - 1 for n in lengths)
