"""Ranks, in which equal values share the mean of theirs."""

import torch
from torch import Tensor


def ranks(values: Tensor) -> Tensor:
    """The rank of each of values (…, N) along the last axis, from 1; the same shape, float64."""
    values = values.contiguous()
    ordered = values.sort(-1).values
    below, upto = torch.searchsorted(ordered, values), torch.searchsorted(ordered, values, right=True)
    return (below + upto + 1).double() / 2
