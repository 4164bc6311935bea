r"""Dropout (Srivastava et al. 2014) as a property of a training step, not of the model.

A model is a density: it gives the same number whether it is in train or eval mode. Therefore its dropout layers do
nothing by themselves; a training step opens them with the share it wants, and closes them again:

    with dropout(model, 0.3):
        loss(model, …)
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn import functional as F


class Dropout(nn.Module):
    """The identity, but inside :func:`dropout`."""

    share = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.share) if self.share else x


@contextmanager
def dropout(model: nn.Module, share: float) -> Iterator[None]:
    """Within it, every :class:`Dropout` of ``model`` drops this share of its values."""
    layers = [m for m in model.modules() if isinstance(m, Dropout)]
    for layer in layers:
        layer.share = share
    try:
        yield
    finally:
        for layer in layers:
            layer.share = 0.0
