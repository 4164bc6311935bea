r"""Autoregressive steps for images, with masked convolutions (PixelCNN: van den Oord et al. 2016, arXiv:1606.05328).

The image is viewed as (C·f², H/f, W/f) (pixel unshuffle). In the order of its rows, its columns and its channels, each
number is transformed by an increasing map that the ones before it decide, as in `flows.autoregressive`:

    z_i = T(x_i; θ_i),     θ_i = κ·network_i(x_1, …, x_{i−1}, e),     log|det| = Σ log T'(x_i; θ_i).

The channels of every layer are in C·f² groups. A convolution sees the rows above, the pixels to the left, and at its
own place the groups up to its own; the first layer only those before its own. The order is reversed from step to step.
The inverse finds one number after the other; it keeps what the layers saw of the rows above, so that a number costs a
pass over its own row.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowdiff.bijections.transforms import AffineTransform, Transform, TransformFactory, build
from flowdiff.errors import ConfigError
from flowdiff.flows.base import ActivationFactory, Composite, Flow, Step
from flowdiff.flows.context import Context
from flowdiff.flows.conv import Unshuffled
from flowdiff.flows.gated import GatedActivation
from flowdiff.nn.bounds import soft_limit
from flowdiff.nn.dropout import drop_values
from flowdiff.options import Layers, LogScale, Range, Size, checked
from flowdiff.tensors import per_sample


class MaskedConv2d(nn.Module):
    """A convolution of (B, inputs, h, W) that sees what comes before, in the order of rows, columns and groups.

    Its kernel has only the rows above and its own.

    Args:
        inputs, outputs: channels, divided among the groups in order.
        kernel: odd; kernel // 2 rows above are seen, and as many columns on either side.
        groups: number of groups of channels.
        strict: at its own place it sees the groups before its own, not its own.
    """

    mask: Tensor

    def __init__(self, inputs: int, outputs: int, kernel: int, groups: int, strict: bool = False) -> None:
        super().__init__()
        self.reach = kernel // 2
        whole = nn.Conv2d(inputs, outputs, (self.reach + 1, kernel))
        assert whole.bias is not None
        self.weight, self.bias = whole.weight, whole.bias
        seen, own = (torch.arange(n) * groups // n for n in (inputs, outputs))
        mask = torch.zeros_like(self.weight)
        mask[:, :, :-1] = 1
        mask[:, :, -1, : self.reach] = 1
        mask[:, :, -1, self.reach] = (seen < own[:, None] if strict else seen <= own[:, None]).float()
        self.register_buffer("mask", mask, persistent=False)
        fan_in = mask.sum((1, 2, 3)).clamp(min=1)
        with torch.no_grad():  # as large as if the inputs that are not seen did not exist
            self.weight *= (mask[0].numel() / fan_in).sqrt().clamp(max=3)[:, None, None, None]

    def forward(self, x: Tensor, above: Tensor | None = None) -> Tensor:
        """The same number of rows; `above` are the `reach` rows of the input before them, by default zeros."""
        x = F.pad(self._after(above, x), (self.reach, self.reach))
        return F.conv2d(x, self.weight * self.mask, self.bias)

    def _after(self, above: Tensor | None, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, self.reach, 0)) if above is None else torch.cat([above, x], 2)

    def last_rows(self, x: Tensor, above: Tensor | None) -> Tensor:
        """What `above` is for the rows that come after x."""
        return self._after(above, x)[:, :, x.shape[2] :]


class PixelCNN(nn.Module):
    """(B, C, H, W) and an embedding (B, E) to (B, size, C, H, W); 0 at initialisation.

    [:, :, c, i, j] depends on what comes before (i, j, c) only.

    Args:
        shape: (C, H, W).
        size: numbers given for each number of the image.
        context_dim: E.
        width: hidden channels.
        depth: number of residual blocks, of a 3×3 and a 1×1 convolution.
        kernel: of the first convolution.
    """

    def __init__(
        self, shape: tuple[int, int, int], size: int, context_dim: int, width: int, depth: int, kernel: int = 5
    ) -> None:
        super().__init__()
        channels, height, breadth = shape
        self.size = size
        self.first = MaskedConv2d(2 * channels, width, kernel, channels, strict=True)
        self.position = nn.Parameter(torch.zeros(width, height, breadth))
        self.film = nn.Linear(context_dim, 2 * width * depth)
        self.inner = nn.ModuleList(MaskedConv2d(width, width, 3, channels) for _ in range(depth))
        self.outer = nn.ModuleList(MaskedConv2d(width, width, 1, channels) for _ in range(depth))
        self.last = MaskedConv2d(width, size * channels, 1, channels)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, embedding: Tensor, dropout: float = 0.0) -> Tensor:
        return self.rows(x, embedding, 0, [None] * (1 + len(self.inner)), dropout)[0]

    def rows(
        self, x: Tensor, embedding: Tensor, start: int, above: Sequence[Tensor | None], dropout: float = 0.0
    ) -> tuple[Tensor, list[Tensor]]:
        """Some rows of the image, x (B, C, h, W) from row `start` on.

        Args:
            x, embedding, dropout: as in `forward`.
            start: number of the first row.
            above: for the first convolution and for each block's, what it saw of the rows before; None at the top.

        Returns:
            (B, size, C, h, W), and `above` for the rows after these.
        """
        v = soft_limit(x)
        pairs = torch.stack([v, (1 + v.square()).sqrt()], 2).flatten(1, 2)  # a number and its size, in one group
        h = self.first(pairs, above[0]) + self.position[:, start : start + x.shape[2]]
        below = [self.first.last_rows(pairs, above[0])]
        terms = self.film(embedding)[:, :, None, None].chunk(2 * len(self.inner), 1)
        for i, (inner, outer) in enumerate(zip(self.inner, self.outer, strict=True)):
            scale, shift = terms[2 * i : 2 * i + 2]
            r = F.silu(torch.addcmul(shift, h, 1 + scale))
            assert isinstance(inner, MaskedConv2d)
            below.append(inner.last_rows(r, above[1 + i]))
            h = h + outer(drop_values(F.silu(inner(r, above[1 + i])), dropout))
        out = self.last(F.silu(h)).to(x.dtype)
        return out.unflatten(1, (-1, self.size)).transpose(1, 2), below


class MaskedConvolutions(Step):
    """One autoregressive step on images (B, C, H, W).

    Args:
        shape: (C, H, W).
        transform: what is done to each number.
        context_dim: length of the embedding.
        width, depth: of the PixelCNN.
        backwards: the order is from the last number to the first.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        transform: Transform,
        context_dim: int,
        width: int,
        depth: int,
        backwards: bool = False,
    ) -> None:
        super().__init__()
        self.transform = transform
        self.backwards = backwards
        self.network = PixelCNN(shape, transform.size, context_dim, width, depth)

    def _turn(self, x: Tensor) -> Tensor:
        return x.flip(1, 2, 3) if self.backwards else x

    def terms(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        x = self._turn(x)
        theta = self.network(x, context.embedding, context.dropout)
        theta = per_sample(context.kappa, theta) * theta
        z, log_slope = self.transform.forward(x.flatten(1), theta.flatten(2))
        return self._turn(z.view_as(x)), log_slope

    def inverse(self, z: Tensor, context: Context) -> Tensor:
        """The x with forward(x) = z, exactly: a row takes C·W passes over itself."""
        z = self._turn(z)
        rows: list[Tensor] = []
        above: Sequence[Tensor | None] = [None] * (1 + len(self.network.inner))
        for i, target in enumerate(z.split(1, 2)):
            row = torch.zeros_like(target)
            for j in range(row.shape[3]):
                for c in range(row.shape[1]):
                    theta = self.network.rows(row, context.embedding, i, above)[0][:, :, c, 0, j]
                    theta = (per_sample(context.kappa, theta) * theta)[:, :, None]
                    row = row.clone()
                    row[:, c, 0, j] = self.transform.inverse(target[:, c, 0, j, None], theta)[:, 0]
            above = self.network.rows(row, context.embedding, i, above)[1]
            rows.append(row)
        return self._turn(torch.cat(rows, 2))


class PixelCNNFlow(Composite):
    """n_flows × [MaskedConvolutions, GatedActivation] on the unshuffled image. Sampling takes n_flows·d passes.

    Args:
        shape: (C, H, W).
        context_dim: length of the embedding of σ and class.
        activation: makes the activation of a step.
        n_flows: number of steps.
        width, depth: of each PixelCNN.
        factor: f, which must divide H and W; a larger one makes rows and columns fewer and groups more. None: 2 where
            it divides both, else 1.
        max_log_scale: soft bound of a step's log-scales.
        transform: makes what a step does to each number, called with max_log_scale=.
    """

    @checked
    def __init__(
        self,
        shape: tuple[int, ...],
        context_dim: int,
        activation: ActivationFactory,
        n_flows: Layers = 1,
        width: Size = 64,
        depth: Layers = 3,
        factor: Annotated[int, Range(1, 64)] | None = None,
        max_log_scale: LogScale = 3.0,
        transform: TransformFactory = AffineTransform,
    ) -> None:
        if len(shape) != 3:
            raise ConfigError("flow", "pixelcnn", f"needs images (C, H, W), not data of shape {tuple(shape)}")
        channels, height, breadth = shape
        if factor is None:
            factor = 1 if height % 2 or breadth % 2 else 2
        if height % factor or breadth % factor:
            raise ConfigError("flow.factor", factor, f"must divide the image size {height}×{breadth}")
        size = (channels * factor**2, height // factor, breadth // factor)
        steps: list[Flow] = []
        for i in range(n_flows):
            made = build(transform, max_log_scale)
            steps += [
                MaskedConvolutions(size, made, context_dim, width, depth, backwards=i % 2 == 1),
                GatedActivation(activation, size),
            ]
        super().__init__([Unshuffled(factor, steps, size)], shape)
