r"""Dropout (Srivastava et al. 2014) as a property of a training step, not of the model.

A model is a density: it gives the same number whether it is in train or eval mode. Networks are therefore told at each
call which share of their hidden values to drop, and drop none unless they are.
"""

from torch import Tensor
from torch.nn import functional as F


def drop_values(x: Tensor, share: float) -> Tensor:
    """x with this share of its values 0 and the others divided by 1 − share; x itself if the share is 0."""
    return F.dropout(x, share) if share else x
