"""Elementwise maps: activations, splines, transforms with parameters from a conditioner, marginals of data."""

from flowdiff.bijections.activations import ELU, Activation, Identity, LeakyReLU, Softplus, Spline, Swish, Tanh
from flowdiff.bijections.transforms import AffineTransform, SplineTransform, Transform

__all__ = [
    "Activation",
    "AffineTransform",
    "ELU",
    "Identity",
    "LeakyReLU",
    "Softplus",
    "Spline",
    "SplineTransform",
    "Swish",
    "Tanh",
    "Transform",
]
