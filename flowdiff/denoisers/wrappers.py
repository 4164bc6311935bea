r"""Wrappers around a denoiser. Each is a denoiser again: `Clipped(Guided(Counted(denoiser), 2.0), -1, 1)`.

Guided   classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598): D = D_null + w (D_c - D_null), which
         is the D of log p = log p_c + (w - 1)(log p_c - log p_null)
Clipped  D into the range of the data. An exact D is a mean of data and lies there already; an inexact one may
         not, and its errors feed back into the walk: clipped, x stays between the data and the noise.
         (NaN stays NaN: it is not hidden.) log p stays what it is, so that Metropolis' test stays exact: the
         clipped score is only what makes the proposals.
Counted  counts evaluations (NFE), their forward passes and gradients.
Tiled    the network sees a fixed number of rows at a time.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from flowdiff.errors import ConfigError, is_number
from flowdiff.tensors import per_sample


class Wrapper:
    """A denoiser around a denoiser: passes on its facts, its density and its inverse.

    Args:
        denoiser: `D = denoiser(x, sigma, labels)`.
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

    @property
    def has_density(self) -> bool:
        return getattr(self.denoiser, "has_density", hasattr(self.denoiser, "log_prob"))

    @property
    def by_gradient(self) -> bool:
        return getattr(self.denoiser, "by_gradient", False)

    def inverse(self, z: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """x from z, by the flow itself: guidance and clipping concern D and the density only."""
        return self.denoiser.inverse(z, sigma, labels)

    def latent(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """z from x, by the flow itself."""
        return self.denoiser.latent(x, sigma, labels)

    def score_and_log_prob(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The score (n, *shape) and log p (n,), up to a constant."""
        return score_and_log_prob(self.denoiser, x, sigma, labels)

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
        if labels is None or self.scale == 1:
            return super().score_and_log_prob(x, sigma, labels)
        null = super().score_and_log_prob(x, sigma, None)
        if self.scale == 0:
            return null
        score, log_prob = super().score_and_log_prob(x, sigma, labels)
        return torch.lerp(null[0], score, self.scale), torch.lerp(null[1], log_prob, self.scale)


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

    def score_and_log_prob(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        score, log_prob = super().score_and_log_prob(x, sigma, labels)
        variance = per_sample(sigma**2, x)
        denoised = x + variance * score
        held = denoised.clamp(self.low, self.high)
        return torch.where(held == denoised, score, (held - x) / variance), log_prob


class Counted(Wrapper):
    """Counts what is asked of a denoiser since the last `reset`.

    Put it innermost: guidance then counts twice, as it should.

    Attributes:
        nfe: evaluations of D, of score and log p, or of z.
        forward: forward passes through the network: one an evaluation.
        gradient: gradients by x: one an evaluation of a score, or of a D that is made of one (`by_gradient`).
        inversions: of the flow.
    """

    def __init__(self, denoiser: Any) -> None:
        super().__init__(denoiser)
        self.reset()

    def reset(self) -> None:
        """Start again at zero."""
        self.nfe = self.forward = self.gradient = self.inversions = 0

    def inverse(self, z: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        self.inversions += 1
        return super().inverse(z, sigma, labels)

    def latent(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        self.nfe += 1
        self.forward += 1
        return super().latent(x, sigma, labels)

    def score_and_log_prob(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.nfe += 1
        self.forward += 1
        self.gradient += 1
        return super().score_and_log_prob(x, sigma, labels)

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        self.nfe += 1
        self.forward += 1
        self.gradient += self.by_gradient
        return super().__call__(x, sigma, labels)


class Tiled(Wrapper):
    """A denoiser whose network sees `tile` rows at a time. Its batches hold a multiple of `tile` rows."""

    def __init__(self, denoiser: Any, tile: int) -> None:
        super().__init__(denoiser)
        self.tile = tile

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return torch.cat(self._by_tile(super().__call__, x, sigma, labels))

    def inverse(self, z: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return torch.cat(self._by_tile(super().inverse, z, sigma, labels))

    def latent(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return torch.cat(self._by_tile(super().latent, x, sigma, labels))

    def score_and_log_prob(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        scores, log_probs = zip(*self._by_tile(super().score_and_log_prob, x, sigma, labels), strict=True)
        return torch.cat(scores), torch.cat(log_probs)

    def _by_tile(self, function: Any, x: Tensor, sigma: Tensor, labels: Tensor | None) -> list[Any]:
        rows = [slice(i, i + self.tile) for i in range(0, len(x), self.tile)]
        return [function(x[here], sigma[here], None if labels is None else labels[here]) for here in rows]


class DenoiserLike(Protocol):
    """k-diffusion's and EDM's interface: x (n, *shape), sigma (n,), labels (n,) or None -> D (n, *shape)."""

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None, /) -> Tensor: ...


class Denoise:
    """A denoiser with its labels bound: `D = denoise(x, sigma)`, (n, *shape) and a float -> (n, *shape).

    Args:
        denoiser: `D = denoiser(x, sigma, labels)`.
        labels: (n,) or None.
    """

    def __init__(self, denoiser: Any, labels: Tensor | None = None) -> None:
        self.denoiser = denoiser
        self.labels = labels

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        return self.denoiser(x, x.new_full((len(x),), sigma), self.labels)

    def score_and_log_prob(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """The score (n, *shape) and log p (n,), up to a constant, of a denoiser with a density."""
        return score_and_log_prob(self.denoiser, x, x.new_full((len(x),), sigma), self.labels)


def score_and_log_prob(denoiser: Any, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The denoiser's own, from one pass; of one that has only D and `log_prob`, (D - x) / sigma^2 and that."""
    if hasattr(denoiser, "score_and_log_prob"):
        return denoiser.score_and_log_prob(x, sigma, labels)
    return (denoiser(x, sigma, labels) - x) / per_sample(sigma**2, x), denoiser.log_prob(x, sigma, labels)
