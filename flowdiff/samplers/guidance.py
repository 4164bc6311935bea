r"""Wrappers around a denoiser. Each is a denoiser again: ``Clipped(Guided(Counted(denoiser), 2.0), -1, 1)``.

Guided   classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598): D = D_null + w (D_c - D_null),
         the D of the unnormalised density p_null (p_c / p_null)^w
Clipped  D into the range of the data. An exact D is a mean of data and lies there already; an inexact one may
         not, and its errors feed back into the walk: clipped, x stays between the data and the noise.
         (NaN stays NaN: it is not hidden.)
Counted  counts evaluations (NFE).
"""

from typing import Any

import torch
from torch import Tensor

from flowdiff.errors import ConfigError, is_number


class Wrapper:
    """A denoiser around a denoiser: passes on its facts and its inverse.

    Args:
        denoiser: ``D = denoiser(x, sigma, labels)``.
    """

    def __init__(self, denoiser: Any) -> None:
        self.denoiser = denoiser

    @property
    def shape(self) -> tuple[int, ...]:
        return self.denoiser.shape

    @property
    def num_classes(self) -> int:
        return self.denoiser.num_classes

    @property
    def has_inverse(self) -> bool:
        return getattr(self.denoiser, "has_inverse", hasattr(self.denoiser, "inverse"))

    def inverse(self, z: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """x from z, by the flow itself: guidance and clipping concern D only."""
        return self.denoiser.inverse(z, sigma, labels)

    def latent(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """z from x, by the flow itself."""
        return self.denoiser.latent(x, sigma, labels)

    def score_and_log_prob(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The score (n, *shape) and the log-density (n,) that Langevin steps go by."""
        return self.denoiser.score_and_log_prob(x, sigma, labels)

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.denoiser(x, sigma, labels)


class Guided(Wrapper):
    """D = D_null + scale (D_c - D_null): two evaluations, one if scale is 1 or 0 or without labels.

    Args:
        denoiser: one whose labels None mean the null class.
        scale: 1 = no guidance, 0 = without the class, more than 1 = more of the class.
    """

    def __init__(self, denoiser: Any, scale: float = 1.0) -> None:
        super().__init__(denoiser)
        if not (is_number(scale) and scale >= 0):
            raise ConfigError("guidance_scale", scale, "must be a number >= 0 (1: no guidance)")
        self.scale = float(scale)

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        if labels is None or self.scale == 1:
            return self.denoiser(x, sigma, labels)
        null = self.denoiser(x, sigma, None)
        if self.scale == 0:
            return null
        return torch.lerp(null, self.denoiser(x, sigma, labels), self.scale)

    def score_and_log_prob(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """log p_null + scale (log p_c - log p_null), a log-density up to a constant, and its gradient."""
        if labels is None or self.scale == 1:
            return self.denoiser.score_and_log_prob(x, sigma, labels)
        null, own = (self.denoiser.score_and_log_prob(x, sigma, c) for c in (None, labels))
        return torch.lerp(null[0], own[0], self.scale), torch.lerp(null[1], own[1], self.scale)


class Clipped(Wrapper):
    """D clamped into [low, high], elementwise.

    Args:
        denoiser: any.
        low, high: the range of the data, e.g. -1 and 1 for pixels.
    """

    def __init__(self, denoiser: Any, low: float, high: float) -> None:
        super().__init__(denoiser)
        if not low < high:
            raise ValueError(f"low must be smaller than high, not {low} and {high}")
        self.low = low
        self.high = high

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.denoiser(x, sigma, labels).clamp(self.low, self.high)


class Counted(Wrapper):
    """Counts calls of a denoiser (``nfe``) and of its inverse (``inversions``) since the last ``reset``.

    Put it innermost: guidance then counts twice, as it should.
    """

    def __init__(self, denoiser: Any) -> None:
        super().__init__(denoiser)
        self.reset()

    def reset(self) -> None:
        """Start again at zero."""
        self.nfe = 0
        self.inversions = 0

    def inverse(self, z: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        self.inversions += 1
        return super().inverse(z, sigma, labels)

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        self.nfe += 1
        return super().__call__(x, sigma, labels)
