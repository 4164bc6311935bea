r"""Elementwise maps with parameters from a conditioner: what a coupling or an autoregressive step does to a coordinate.

    Affine:   y = exp(s)·x + t
    Spline:   y = RQS(exp(s)·x + t; θ)         (rational-quadratic spline: Durkan et al. 2019, arXiv:1906.04032)

Both are the identity where all parameters are 0, and all log-scales are softly bounded. The spline is the identity
outside of ±bound, so that far from the data both are affine.
"""

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor

from flowdiff.bijections.splines import Knots, knots, spline, spline_inverse
from flowdiff.errors import ConfigError
from flowdiff.nn.bounds import soft_bound
from flowdiff.options import LogScale, LogSlope, Positive, Range, checked


class Transform:
    """An increasing map of the line for every coordinate.

    Attributes:
        size: P, the number of parameters of a coordinate.
    """

    size: int

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, m) and parameters (B, P, m) to y and log dy/dx, both (B, m)."""
        raise NotImplementedError

    def inverse(self, y: Tensor, parameters: Tensor) -> Tensor:
        """The x with forward(x) = y."""
        raise NotImplementedError


TransformFactory = Callable[..., Transform]


def build(transform: TransformFactory, max_log_scale: float) -> Transform:
    """transform(max_log_scale=…).

    Raises:
        ConfigError: what was given makes no transform, e.g. its name alone.
    """
    if not callable(transform):
        raise ConfigError("flow.transform", transform, "must be a node with a _target_, as flow=spline has one")
    return transform(max_log_scale=max_log_scale)


class AffineTransform(Transform):
    """y = exp(s)·x + t.

    Args:
        max_log_scale: soft bound of |s|.
    """

    size = 2

    @checked
    def __init__(self, max_log_scale: LogScale = 2.0) -> None:
        self.max_log_scale = max_log_scale

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        s, t = parameters.unbind(1)
        s = soft_bound(s, self.max_log_scale)
        return torch.addcmul(t, s.exp(), x), s

    def inverse(self, y: Tensor, parameters: Tensor) -> Tensor:
        s, t = parameters.unbind(1)
        return (y - t) * (-soft_bound(s, self.max_log_scale)).exp()


class SplineTransform(Transform):
    """y = RQS(exp(s)·x + t; θ): the affine map brings the coordinate into the spline's interval.

    Args:
        max_log_scale: soft bound of |s|, and of the logs of the spline's slopes at its knots.
        bins: of the spline.
        bound: the spline is the identity outside of ±bound.
    """

    @checked
    def __init__(
        self, max_log_scale: LogSlope = 2.0, bins: Annotated[int, Range(2, 1000)] = 8, bound: Positive = 5.0
    ) -> None:
        self.max_log_scale = max_log_scale
        self.bound = bound
        self.affine = AffineTransform(max_log_scale)
        self.size = self.affine.size + 3 * bins - 1

    def _split(self, parameters: Tensor) -> tuple[Tensor, Knots]:
        affine, curve = parameters.split([self.affine.size, self.size - self.affine.size], 1)
        return affine, knots(curve.movedim(1, -1), self.bound, self.max_log_scale)

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        affine, curve = self._split(parameters)
        h, log_scale = self.affine.forward(x, affine)
        y, slope = spline(h, curve)
        return y, log_scale + slope.log()

    def inverse(self, y: Tensor, parameters: Tensor) -> Tensor:
        affine, curve = self._split(parameters)
        return self.affine.inverse(spline_inverse(y, curve), affine)
