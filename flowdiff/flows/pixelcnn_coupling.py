r"""Masked convolutions near the pixels, then couplings.

    z = g(h(x)),     log|det| = log|det ∂h/∂x| + log|det ∂g/∂h|

h is an autoregressive step of masked convolutions (`flows.pixelcnn`): the same few weights at every place say what a
pixel's neighbours say of it. g are couplings (`flows.coupling`), whose networks see half of the image at once. Data
that are not images have no neighbours: there z = g(x).
"""

from collections.abc import Callable

from flowdiff.flows.base import ActivationFactory, Composite, Flow
from flowdiff.flows.coupling import CouplingFlow
from flowdiff.flows.pixelcnn import PixelCNNFlow
from flowdiff.options import Layers, LogScale, Size


class PixelCNNCouplingFlow(Composite):
    """[PixelCNNFlow, CouplingFlow].

    Args:
        shape: shape of a sample; at least two coordinates.
        context_dim: length of the embedding of σ and class.
        activation: makes the activation of a step.
        n_flows: number of couplings.
        width, depth, max_log_scale: of the couplings.
        pixels: makes h, called with shape= and context_dim=. None: the couplings alone.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        context_dim: int,
        activation: ActivationFactory,
        n_flows: Layers = 8,
        width: Size = 128,
        depth: Layers = 2,
        max_log_scale: LogScale = 2.0,
        pixels: Callable[..., Flow] | None = PixelCNNFlow,
    ) -> None:
        near: list[Flow] = []
        if pixels is not None and len(shape) == 3:
            near = [pixels(shape=shape, context_dim=context_dim)]
        far = CouplingFlow(shape, context_dim, activation, n_flows, width, depth, max_log_scale)
        super().__init__([*near, far], shape)
