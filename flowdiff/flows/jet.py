r"""Few couplings with strong convolutional networks, after the plan of Jet (Kolesnikov et al. 2024, arXiv:2412.15129).

The image (C, H, W) is seen as its patches, (C·f², H/f, W/f) (pixel unshuffle). A coupling leaves one half of it as it
is and decides by it what happens to the other,

    y_b = exp(s)·x_b + t,     (s, t) = κ·network(x_a, e),     log|det| = Σ s,

and halves are, in turn,

    channel    half of the channels, after a fixed permutation of them
    channel    the other half
    spatial    every second place, as on a chessboard; the other colour in the next round

as Jet's two to one. There are no invertible matrices and no scales per pixel: nearly all of a step's arithmetic is in
3×3 convolutions of many channels. (Jet's networks are vision transformers; ours convolve, by `nn.networks`.)
"""

import functools

import torch
from torch import Tensor

from flowdiff.errors import ConfigError
from flowdiff.flows.base import ActivationFactory, Flow, Step
from flowdiff.flows.context import Context
from flowdiff.flows.conv import ConvCoupling, Network, Unshuffled
from flowdiff.flows.gated import GatedActivation
from flowdiff.flows.patches import patch_size
from flowdiff.nn.bounds import soft_bound
from flowdiff.nn.networks import ResidualConvNet
from flowdiff.options import Layers, LogScale, Size, checked
from flowdiff.tensors import per_sample


class ChannelCoupling(ConvCoupling):
    """A coupling of halves of the channels in the order of a fixed permutation.

    Args:
        channels, network, swap, max_log_scale: as for `flows.conv.ConvCoupling`.
        seed: chooses the permutation.
    """

    order: Tensor
    back: Tensor

    def __init__(self, channels: int, network: Network, swap: bool, seed: int, max_log_scale: float) -> None:
        super().__init__(channels, network, swap, max_log_scale)
        order = torch.randperm(channels, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", order.argsort(), persistent=False)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super()._split(x.index_select(1, self.order))

    def _join(self, seen: Tensor, moved: Tensor) -> Tensor:
        return super()._join(seen, moved).index_select(1, self.back)


class SpatialCoupling(Step):
    """A coupling of the places of two colours of a chessboard, on (B, C, H, W).

    Args:
        size: (C, H, W).
        network: makes the network, given the numbers of its input and output channels.
        swap: which colour moves.
        max_log_scale: soft bound of |s|.
    """

    moved: Tensor

    def __init__(self, size: tuple[int, int, int], network: Network, swap: bool, max_log_scale: float) -> None:
        super().__init__()
        channels, height, breadth = size
        colour = (torch.arange(height)[:, None] + torch.arange(breadth) + swap) % 2
        self.register_buffer("moved", colour.float(), persistent=False)
        self.network = network(channels, 2 * channels)
        self.max_log_scale = max_log_scale

    def _terms(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        seen = x * (1 - self.moved)
        strength = per_sample(context.kappa, x) * self.moved
        s, t = (strength * self.network(seen, context.embedding, context.dropout)).chunk(2, 1)
        return soft_bound(s, self.max_log_scale), t

    def terms(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        s, t = self._terms(x, context)
        return torch.addcmul(t, s.exp(), x), s

    def inverse(self, z: Tensor, context: Context) -> Tensor:
        s, t = self._terms(z, context)
        return (z - t) * (-s).exp()


class JetFlow(Unshuffled):
    """n_flows × [ChannelCoupling or SpatialCoupling, GatedActivation] on the patches of images.

    Args:
        shape: (C, H, W).
        context_dim: length of the embedding of σ and class.
        activation: makes the activation of a step.
        n_flows: number of couplings; every third one is spatial.
        width, depth: of each network; `depth` is its residual blocks of two convolutions.
        patch: f. None: the smallest one, from 2 on, that leaves at most 64 patches.
        max_log_scale: soft bound of a coupling's log-scales.

    Raises:
        ConfigError: data that aren't images, or can't be cut into such patches.
    """

    @checked
    def __init__(
        self,
        shape: tuple[int, ...],
        context_dim: int,
        activation: ActivationFactory,
        n_flows: Layers = 6,
        width: Size = 128,
        depth: Layers = 1,
        patch: Size | None = None,
        max_log_scale: LogScale = 2.0,
    ) -> None:
        if len(shape) != 3:
            raise ConfigError("flow", "jet", f"needs images (C, H, W), not data of shape {tuple(shape)}")
        f = patch_size("jet", shape, patch)
        size = (shape[0] * f**2, shape[1] // f, shape[2] // f)
        if size[0] < 2:
            raise ConfigError("flow.patch", f, "must be larger: a coupling needs two channels")
        network = functools.partial(ResidualConvNet, context_dim=context_dim, width=width, depth=depth, size=size[1:])
        steps: list[Flow] = []
        for i in range(n_flows):
            round_, kind = divmod(i, 3)
            coupling: Flow
            if kind == 2:
                coupling = SpatialCoupling(size, network, round_ % 2 == 1, max_log_scale)
            else:
                coupling = ChannelCoupling(size[0], network, kind == 1, round_, max_log_scale)
            steps += [coupling, GatedActivation(activation, size)]
        super().__init__(f, steps, size)
