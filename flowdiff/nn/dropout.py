r"""Dropout (Srivastava et al. 2014) as a property of a training step, not of the model.

A model is a density: it gives the same number whether it is in train or eval mode. Therefore its dropout layers do
nothing by themselves; a training step opens them with the share it wants, and closes them again:

    with dropout(model, 0.3):
        loss(model, …)
"""

from contextlib import AbstractContextManager

from torch import Tensor, nn
from torch.nn import functional as F

from flowdiff.nn.modes import within


class Dropout(nn.Module):
    """The identity, but inside `dropout`."""

    share = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.share) if self.share else x


def dropout(model: nn.Module, share: float) -> AbstractContextManager[None]:
    """Within it, every `Dropout` of `model` drops this share of its values."""
    return within(model, Dropout, share=share)
