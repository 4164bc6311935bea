r"""Flows of other libraries as densities of images in [−1, 1], measured as flowdiff's are.

Each acts on standardised pixels u = (x − m)/s, m and s the mean and standard deviation of a pixel over the training
split with dequantisation and σ_min-noise, so that

    log p(x | c) = log p_flow(u | c) − Σ log s.

    zuko        NSF (Durkan et al. 2019, arXiv:1906.04032), MAF (Papamakarios et al. 2017, arXiv:1705.07057)
    nflows      RQ-NSF (C) (arXiv:1906.04032)
    normflows   Glow (Kingma & Dhariwal 2018, arXiv:1807.03039)

They know one noise level, σ_min. A peer is a class with `flow_log_prob` and `flow_sample`, and an entry in
contenders.yaml.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from flowdiff.data.base import ImageData


class Peer(nn.Module):
    """The density of images (B, *shape), given their class if `num_classes` is not 0.

    Attributes:
        passes: evaluations of the network that one sample takes.
    """

    has_density = True
    has_inverse = True
    normalized = True
    passes = 1
    mean: Tensor
    scale: Tensor

    def __init__(self, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.shape, self.num_classes = tuple(shape), num_classes
        self.dim = math.prod(shape)
        self.register_buffer("mean", torch.zeros(self.dim))
        self.register_buffer("scale", torch.ones(self.dim))

    def standardise(self, data: ImageData, sigma_min: float) -> None:
        """Take m and s from the training split of `data`, once, before training."""
        x = data.to_centres(data.images("train")[0]).flatten(1).double()
        bin_variance = 0.0 if data.levels is None else (2 / data.levels) ** 2 / 12
        self.mean.copy_(x.mean(0))
        self.scale.copy_((x.var(0, correction=0) + bin_variance + sigma_min**2).sqrt())

    def log_prob(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """log p(x | labels) in nats, (B,).

        Args:
            x: (B, *shape).
            sigma: the level it was trained at; there is no other.
            labels: (B,) in [0, K); None for a model without classes.
        """
        u = (x.flatten(1) - self.mean) / self.scale
        return self.flow_log_prob(u, labels) - self.scale.log().sum()

    @torch.no_grad()
    def sample(self, n: int, labels: Tensor | None) -> Tensor:
        """`n` samples (n, *shape), of the classes `labels` (n,), from torch's global generator."""
        return (self.flow_sample(n, labels) * self.scale + self.mean).reshape(n, *self.shape)

    def one_hot(self, labels: Tensor | None) -> Tensor | None:
        """Labels (B,) as (B, K)."""
        return None if labels is None else one_hot(labels, self.num_classes).to(self.mean)

    def flow_log_prob(self, u: Tensor, labels: Tensor | None) -> Tensor:
        """Log-density of standardised pixels (B, d), (B,)."""
        raise NotImplementedError

    def flow_sample(self, n: int, labels: Tensor | None) -> Tensor:
        """Standardised pixels (n, d)."""
        raise NotImplementedError


class Zuko(Peer):
    """A flow of zuko.

    Args:
        flow: makes it, called with features and context: `zuko.flows.NSF`, `zuko.flows.MAF`, ….
    """

    def __init__(self, shape: tuple[int, ...], num_classes: int, flow: Callable[[int, int], Any]) -> None:
        super().__init__(shape, num_classes)
        self.flow = flow(self.dim, num_classes)
        self.passes = max(getattr(step, "passes", 1) for step in self.flow.modules())

    def flow_log_prob(self, u: Tensor, labels: Tensor | None) -> Tensor:
        return self.flow(self.one_hot(labels)).log_prob(u)

    def flow_sample(self, n: int, labels: Tensor | None) -> Tensor:
        context = self.one_hot(labels)
        return self.flow(context).sample((n,) if context is None else ())


class NflowsRQNSF(Peer):
    """nflows' rational-quadratic couplings between LU layers, on the pixels as one vector.

    Args:
        steps: couplings.
        hidden: width of their residual networks.
        blocks: residual blocks of each.
        bins: of the splines.
        dropout: in the networks.
        tail_bound: the splines are the identity outside ±tail_bound.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        num_classes: int,
        steps: int,
        hidden: int,
        blocks: int,
        bins: int,
        dropout: float,
        tail_bound: float = 3.0,
    ) -> None:
        from nflows import flows, transforms
        from nflows.distributions import StandardNormal
        from nflows.nn.nets import ResidualNet
        from nflows.utils import create_alternating_binary_mask

        super().__init__(shape, num_classes)

        def network(inputs: int, outputs: int) -> nn.Module:
            return ResidualNet(inputs, outputs, hidden, num_classes or None, blocks, dropout_probability=dropout)

        def mixing() -> list[nn.Module]:
            return [transforms.RandomPermutation(self.dim), transforms.LULinear(self.dim, identity_init=True)]

        def coupling(i: int) -> nn.Module:
            return transforms.PiecewiseRationalQuadraticCouplingTransform(
                create_alternating_binary_mask(self.dim, even=i % 2 == 0),
                network,
                num_bins=bins,
                tails="linear",
                tail_bound=tail_bound,
                apply_unconditional_transform=True,
            )

        layers = [layer for i in range(steps) for layer in (*mixing(), coupling(i))]
        self.flow = flows.Flow(transforms.CompositeTransform([*layers, *mixing()]), StandardNormal([self.dim]))

    def flow_log_prob(self, u: Tensor, labels: Tensor | None) -> Tensor:
        return self.flow.log_prob(u, self.one_hot(labels))

    def flow_sample(self, n: int, labels: Tensor | None) -> Tensor:
        context = self.one_hot(labels)
        return self.flow.sample(n) if context is None else self.flow.sample(1, context)[:, 0]


class NormflowsGlow(Peer):
    """normflows' multi-scale Glow; the class sets mean and scale of the base Gaussians.

    Args:
        levels: of the multi-scale architecture; height and width must be divisible by 2^levels.
        steps: Glow blocks of each level.
        hidden: channels of their networks.
    """

    def __init__(self, shape: tuple[int, ...], num_classes: int, levels: int, steps: int, hidden: int) -> None:
        import normflows as nf

        super().__init__(shape, num_classes)
        channels, height, width = shape
        bases, flows = [], []
        for i in range(levels):  # from the coarsest level to the pixels
            deep = channels * 2 ** (levels + 1 - i)
            blocks = [nf.flows.GlowBlock(deep, hidden, split_mode="channel", scale=True) for _ in range(steps)]
            flows.append([*blocks, nf.flows.Squeeze()])
            factor = 2 ** (levels - i)
            latent = (deep if i == 0 else deep // 2, height // factor, width // factor)
            base = nf.distributions.ClassCondDiagGaussian if num_classes else nf.distributions.DiagGaussian
            bases.append(base(latent, num_classes) if num_classes else base(latent))
        merges = [nf.flows.Merge() for _ in range(levels - 1)]
        self.flow = nf.MultiscaleFlow(bases, flows, merges, class_cond=bool(num_classes))

    def flow_log_prob(self, u: Tensor, labels: Tensor | None) -> Tensor:
        return self.flow.log_prob(u.reshape(len(u), *self.shape), labels)

    def flow_sample(self, n: int, labels: Tensor | None) -> Tensor:
        return self.flow.sample(n, labels)[0].flatten(1)
