"""Reshapes of tensors."""

from torch import Tensor


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """(B,) reshaped to (B, 1, …, 1), to multiply the rows of `like`."""
    return values.reshape(-1, *([1] * (like.dim() - 1)))
