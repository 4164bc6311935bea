r"""Elementwise bijections of the line.

A raw nonlinearity r (softplus, elu, tanh, swish) is not onto R, and swish is not even increasing, so that
exp(log p) would not integrate to 1. Mixed with the identity it is a strictly increasing bijection:

    a(x) = leak·x + (1 − leak)·r(x),         a'(x) = leak + (1 − leak)·r'(x) > 0.

Inside a flow it enters through a gate that starts closed (`flows.gated`). An activation with parameters of its own
(`Spline`) is the identity at the start by itself; its gate starts open.
"""

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowdiff.bijections.splines import Knots, knots, slope_bounds, spline, spline_inverse
from flowdiff.errors import ConfigError
from flowdiff.nn.bounds import SWISH_LOWEST_SLOPE
from flowdiff.options import LogSlope, Positive, Range, Share, checked


class Activation(nn.Module):
    """a(x) = leak·x + (1 − leak)·r(x). A subclass gives `raw` and `raw_slope`.

    Attributes:
        lowest_raw_slope, highest_raw_slope: bounds of r'.
        initial_gate: where the gate starts; above 0 only if a is the identity at initialisation.

    Args:
        leak: share of the identity, in [0, 1]. 0 is an ablation: then a is not onto R, a flow that uses it
            has no inverse and no normalised density.

    Raises:
        ConfigError: a leak outside [0, 1], or one with which a would not be increasing.
    """

    lowest_raw_slope = 0.0
    highest_raw_slope = 1.0
    initial_gate = 0.0

    @checked
    def __init__(self, leak: Share = 0.1) -> None:
        super().__init__()
        self.leak = leak
        if self.lowest_raw_slope < 0 and self.lowest_slope <= 0:
            least = -self.lowest_raw_slope / (1 - self.lowest_raw_slope)
            raise ConfigError("leak", leak, f"must be larger than {least:.4f} to be increasing")

    @property
    def lowest_slope(self) -> float:
        """inf a'."""
        return self.leak + (1 - self.leak) * self.lowest_raw_slope

    @property
    def is_bijection(self) -> bool:
        """Whether a is increasing and onto R."""
        return self.lowest_slope > 0

    def build(self, shape: tuple[int, ...]) -> None:
        """Make its own parameters, a set for each entry of `shape`, against which samples broadcast. None here."""

    def raw(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def raw_slope(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.leak * x + (1 - self.leak) * self.raw(x)

    def slope(self, x: Tensor) -> Tensor:
        """a'(x), same shape as x."""
        return self.leak + (1 - self.leak) * self.raw_slope(x)

    def mix(self, x: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
        """y = x + strength·(r(x) − x) and dy/dx, for a strength in [0, 1] that broadcasts against x."""
        return torch.lerp(x, self.raw(x), strength), 1 + strength * (self.raw_slope(x) - 1)

    def unmix(self, y: Tensor, strength: Tensor) -> Tensor:
        """The x with mixed(x, strength) = y, by Newton's method kept inside a bracket that bisection shrinks.

        The slope is at least m = 1 + strength·(inf r' − 1), so that |x − y| ≤ |f(y) − y| / m brackets the root.
        """
        strength = strength.expand_as(y)
        lowest = 1 + strength * (min(self.lowest_raw_slope, 1.0) - 1)
        x = y
        residual = strength * (self.raw(x) - x)
        reach = 1.01 * residual.abs() / lowest + torch.finfo(y.dtype).eps * (1 + y.abs())
        low, high = y - reach, y + reach
        for _ in range(100):
            slope = 1 + strength * (self.raw_slope(x) - 1)
            low, high = torch.where(residual < 0, x, low), torch.where(residual > 0, x, high)
            newton = x - residual / slope
            inside = (newton > low) & (newton < high)
            step = torch.where(inside, newton, (low + high) / 2)
            step = torch.where(residual == 0, x, step)
            moved = (step - x).abs()
            x = step
            residual = x + strength * (self.raw(x) - x) - y
            if bool((moved <= 4 * torch.finfo(y.dtype).eps * (1 + x.abs())).all()):
                break
        return x


class Identity(Activation):
    """a(x) = x: the flow without a nonlinearity, the control of every study of activations."""

    lowest_raw_slope = 1.0

    def __init__(self) -> None:
        super().__init__(leak=0.0)

    def raw(self, x: Tensor) -> Tensor:
        return x

    def raw_slope(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)


class Softplus(Activation):
    """r(x) = log(1 + exp(βx)) / β, r'(x) = 1 / (1 + exp(−βx))."""

    @checked
    def __init__(self, beta: Positive = 1.0, leak: Share = 0.1) -> None:
        super().__init__(leak)
        self.beta = beta

    def raw(self, x: Tensor) -> Tensor:
        return F.softplus(x, self.beta, threshold=40)

    def raw_slope(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.beta * x)


class LeakyReLU(Activation):
    """a(x) = max(x, 0) + negative_slope·min(x, 0): increasing and onto as it is."""

    @checked
    def __init__(self, negative_slope: Positive = 0.2) -> None:
        self.lowest_raw_slope = min(1.0, negative_slope)
        self.highest_raw_slope = max(1.0, negative_slope)
        super().__init__(leak=0.0)
        self.negative_slope = negative_slope

    def raw(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self.negative_slope)

    def raw_slope(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, torch.ones_like(x), self.negative_slope)


class ELU(Activation):
    """r(x) = x for x > 0, else α(exp(x) − 1); r'(x) = 1 or α·exp(x)."""

    @checked
    def __init__(self, alpha: Positive = 1.0, leak: Share = 0.1) -> None:
        super().__init__(leak)
        self.alpha = alpha
        self.highest_raw_slope = max(1.0, alpha)

    def raw(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, self.alpha * torch.expm1(x.clamp(max=0)))

    def raw_slope(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, torch.ones_like(x), self.alpha * torch.exp(x.clamp(max=0)))


class Tanh(Activation):
    """r(x) = tanh(x), r'(x) = 1 − tanh(x)²."""

    def raw(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def raw_slope(self, x: Tensor) -> Tensor:
        return 1 - torch.tanh(x).square()


class Swish(Activation):
    """r(x) = x·sigmoid(βx) (Ramachandran et al. 2017, arXiv:1710.05941), whose slope reaches −0.0998.

    Therefore leak/(1 − leak) > 0.0998 is required.
    """

    lowest_raw_slope = SWISH_LOWEST_SLOPE
    highest_raw_slope = 1 - SWISH_LOWEST_SLOPE

    @checked
    def __init__(self, beta: Positive = 1.0, leak: Share = 0.2) -> None:
        super().__init__(leak)
        self.beta = beta

    def raw(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.beta * x)

    def raw_slope(self, x: Tensor) -> Tensor:
        s = torch.sigmoid(self.beta * x)
        return s + self.beta * x * s * (1 - s)


class Spline(Activation):
    """A monotone rational-quadratic spline on [−bound, bound] for every coordinate, the identity outside.

    With it `flow=linear` is a Gaussianization flow (Meng et al. 2020, arXiv:2003.01941). The gate and κ(σ) act on the
    knots and the slopes there, not on the values between: that is a spline again, with an inverse in closed form
    (`bijections.splines`).

    Args:
        bins: number of bins.
        bound: in units of the whitened data.
        max_log_slope: soft bound of the logs of the slopes at the knots.
    """

    initial_gate = 1.0

    @checked
    def __init__(
        self,
        bins: Annotated[int, Range(2, 1000)] = 8,
        bound: Positive = 4.0,
        max_log_slope: LogSlope = 2.0,
    ) -> None:
        super().__init__(leak=0.0)
        self.bins = bins
        self.bound = bound
        self.max_log_slope = max_log_slope
        self.lowest_raw_slope, self.highest_raw_slope = slope_bounds(bins, max_log_slope)
        self.build(())

    def build(self, shape: tuple[int, ...]) -> None:
        self.coefficients = nn.Parameter(torch.zeros(*shape, 3 * self.bins - 1))

    def _knots(self, like: Tensor) -> Knots:
        return knots(self.coefficients.to(like.dtype), self.bound, self.max_log_slope)

    def raw(self, x: Tensor) -> Tensor:
        return spline(x, self._knots(x))[0]

    def raw_slope(self, x: Tensor) -> Tensor:
        return spline(x, self._knots(x))[1]

    def mix(self, x: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
        return spline(x, self._knots(x), strength)

    def unmix(self, y: Tensor, strength: Tensor) -> Tensor:
        return spline_inverse(y, self._knots(y), strength)
