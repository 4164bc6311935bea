"""Soft bounds of what networks see and say, the bound of a slope, and layers that say nothing at the start."""

import torch
from torch import Tensor, nn

SWISH_LOWEST_SLOPE = -0.09984  # of x·sigmoid(x), to four digits, rounded away from zero


def soft_bound(x: Tensor, bound: float) -> Tensor:
    """bound·tanh(x/bound): x near 0, never beyond ±bound."""
    return bound * torch.tanh(x / bound)


def soft_limit(x: Tensor, limit: float = 8.0) -> Tensor:
    """x/√(1 + (x/limit)²): what a network sees of its input. Data are within ±4 after whitening."""
    return x * torch.rsqrt(1 + (x / limit).square())


def silence(layer: nn.Module) -> nn.Module:
    """The layer itself, which from now on gives 0, until training changes it."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def zero_linear(inputs: int, outputs: int) -> nn.Module:
    """A linear layer that gives 0 at initialisation."""
    return silence(nn.Linear(inputs, outputs))
