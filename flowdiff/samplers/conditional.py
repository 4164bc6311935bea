r"""Sampling the unknown part of an image given its known part, with the exact density as judge.

What is known is P x0, with P an orthogonal projector of the space of images; Q = 1 - P is what is sought:

    Mask        P sets the missing pixels to 0                        (inpainting)
    BlockMean   P sets each f x f block to its mean                   (super-resolution by f)

A sampler walks down the noise levels as always; at each level s, before its step,

    x <- Q x + P (x0 + s eps)                            the known part, as noisy as the rest
    u = Q x:   Metropolis-adjusted Langevin steps for p(u | P x; s), proportional to p(x; s)

The first line is the replacement of Song et al. 2021 (arXiv:2011.13456, appendix I) and RePaint
(arXiv:2201.09865). Alone it is biased: a step of the sampler moves the unknown part as if the known part had
been sampled with it. The second line repairs that: the score of the conditional density is Q s(x; s), its
Metropolis ratio needs log p(x; s) at both ends and no normalisation, and so the conditional is the stationary
distribution, exactly. A score network has no log p to do this with.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from flowdiff.samplers.langevin import StepSize, adjusted_steps, optimal_step
from flowdiff.samplers.noise import NoiseSource


class Known:
    """Which part of an image is known: an orthogonal projector P, one for each of n images."""

    def project(self, x: Tensor) -> Tensor:
        """P x: (n, C, H, W) to the same shape."""
        raise NotImplementedError

    def rest(self, x: Tensor) -> Tensor:
        """Q x = x - P x, what is sought."""
        return x - self.project(x)

    def replace(self, x: Tensor, known: Tensor) -> Tensor:
        """Q x + P known."""
        return self.rest(x) + self.project(known)

    def free(self, x: Tensor) -> Tensor:
        """The dimension of what is sought, (n,) in the dtype of x."""
        raise NotImplementedError

    def __getitem__(self, rows: Tensor) -> "Known":
        """The projectors of these images, for int64 row numbers."""
        raise NotImplementedError

    def to(self, device: torch.device) -> "Known":
        """The same on another device."""
        return self


class Mask(Known):
    """Some pixels are missing.

    Args:
        missing: bool (n, C, H, W), True where a pixel is sought.
    """

    def __init__(self, missing: Tensor) -> None:
        self.missing = missing

    def project(self, x: Tensor) -> Tensor:
        return x.masked_fill(self.missing, 0.0)

    def rest(self, x: Tensor) -> Tensor:
        return x.masked_fill(~self.missing, 0.0)

    def replace(self, x: Tensor, known: Tensor) -> Tensor:
        return torch.where(self.missing, x, known)

    def free(self, x: Tensor) -> Tensor:
        return self.missing.flatten(1).sum(1).to(x.dtype)

    def __getitem__(self, rows: Tensor) -> "Mask":
        return Mask(self.missing[rows])

    def to(self, device: torch.device) -> "Mask":
        return Mask(self.missing.to(device))


class BlockMean(Known):
    """The mean of every factor x factor block is known, channel by channel.

    Args:
        factor: divides height and width.
    """

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def project(self, x: Tensor) -> Tensor:
        means = avg_pool2d(x, self.factor)
        return means.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)

    def free(self, x: Tensor) -> Tensor:
        return x.new_full((len(x),), x[0].numel() * (1 - self.factor**-2))

    def __getitem__(self, rows: Tensor) -> "BlockMean":
        return self


class Conditioned:
    """Holds a sampler to what is known: the `correct` of `Sampler`, for one batch.

    The step of chain i at level s is r_i s^2: r_i begins at the optimum for independent Gaussians of variance s^2
    in the `free` dimensions, and follows the chain's own acceptance from level to level. (Metropolis' test is exact
    for a step that knows nothing of the chain's past; what this one knows changes slowly.)

    Args:
        density: x and its level to score and log p (up to a constant), e.g. `Denoise.score_and_log_prob`; never
            called if `n_corrector` is 0.
        noise: standard normals (n, C, H, W) at each call.
        known: the projectors of the n images.
        x0: (n, C, H, W); only P x0 is looked at.
        n_corrector: Langevin steps at each level; 0 is the replacement alone.
    """

    def __init__(
        self,
        density: Callable[[Tensor, float], tuple[Tensor, Tensor]],
        noise: NoiseSource,
        known: Known,
        x0: Tensor,
        n_corrector: int,
    ) -> None:
        self.density, self.noise = density, noise
        self.known, self.x0, self.n_corrector = known, x0, n_corrector
        self.rate = StepSize(optimal_step(known.free(x0).clamp(min=1)), gain=0.3, decay=0.0)
        self.acceptance: list[Tensor] = []
        """(n,) at each level: the share of its steps that was accepted."""

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """x at the level `sigma`, held to what is known."""
        x = self.known.replace(x, self.x0 + sigma * self.noise())
        if not self.n_corrector:
            return x
        density = functools.partial(self._density_of_rest, sigma=sigma)
        state, acceptance = adjusted_steps(
            density, x, self.rate, sigma**2, self.noise, self.n_corrector, free=self.known.rest
        )
        self.acceptance.append(acceptance)
        return state.x

    def _density_of_rest(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Q s(x; sigma) and log p(x; sigma)."""
        score, log_prob = self.density(x, sigma)
        return self.known.rest(score), log_prob
