"""Reshapes of tensors, and sums over a sample."""

from torch import Tensor


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """(B,) reshaped to (B, 1, …, 1), to multiply the rows of `like`."""
    return values.reshape(-1, *([1] * (like.dim() - 1)))


def sum_per_sample(x: Tensor) -> Tensor:
    """The sum over each row of (B, …), (B,); of (B,) itself."""
    return x if x.dim() == 1 else x.flatten(1).sum(1)
