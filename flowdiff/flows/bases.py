r"""Base distributions: the density of what a flow makes of the whitened data, and the way to it from normal numbers.

    normal    q(z) = N(z; 0, I)

    mixture   q(z; σ, c) = (1 − h(σ)) N(z; 0, I) + h(σ) Σ_k π_k N(y; m_k, S_k + σ²I) |dy/dz|,      y = T⁻¹z + m

In the data's own coordinates y there are K Gaussians a class, noised exactly at every σ. Where h is 1 and the flow the
identity, D is the mixture's,

    D = Σ_k r_k(x) (m_k + S_k (S_k + σ²I)⁻¹ (x − m_k)),        r_k ∝ π_k N(x; m_k, S_k + σ²I),

which knows the kinds of images that a class has: a filter that is not linear, before the first step. At low noise,
where a pixel is decided by its neighbours and a few Gaussians know the training images by heart, h is 0:

    log (h/(1 − h)) = d/4 · ((σ/σ_h)² − (σ_h/σ)²),

nats of the size by which the densities of d coordinates differ, so that σ decides and not the image. Pixels that a
whitening bends (`denoisers.precondition`) are bent below σ_h.

In the common eigenbasis, v = Qᵀ(y − μ_c), each Gaussian has a full covariance of the r leading coordinates, which its
own rotation makes diagonal, u_k = R_kᵀv − b_k; of the others a class has the variances alone (`flows.mixture_fit`). The
null class is a class of its own: all images.

Inverted: the quantile Φ(n_1) of the first of d standard normal numbers says which Gaussian, and what it is beyond the
quantiles of those before is uniform again, so that one normal vector still makes one sample:

    k = min{k: π_1 + … + π_k > Φ(n_1)},   n_1 ← Φ⁻¹((Φ(n_1) − π_1 − … − π_{k−1})/π_k),   u_k = (l_k + σ²)^½ n.
"""

import math
from typing import Annotated, Protocol

import torch
from torch import Tensor, nn

from flowdiff.flows.context import Moments
from flowdiff.flows.mixture_fit import Fitting, distances
from flowdiff.options import Range, Sigma, checked

EDGE = 1e-9  # of quantiles
NEVER = 1e9  # nats


class Whitening(Protocol):
    """An affine map of data y (B, d) to whitened z (B, d), given σ (B,) and classes (B,): `denoisers.precondition`."""

    class_means: Tensor  # (C, d), μ, with the null class
    eigenvectors: Tensor  # (d, d), Q; (0, 0) where it is the identity

    def whiten(self, y: Tensor, sigma: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """z and log|dz/dy| (B,)."""

    def colour(self, u: Tensor, sigma: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """y and log|dy/dz| (B,)."""


class Base(nn.Module):
    """A density of whitened coordinates (B, d), given σ (B,), the class (B,) in [0, K], and how they were whitened."""

    def fit(self, statistics: Moments) -> None:
        """Take what it needs from the training data, once, before training."""

    def log_prob(self, z: Tensor, sigma: Tensor, classes: Tensor, whitening: Whitening) -> Tensor:
        """log q(z; σ, c) in nats, (B,)."""
        raise NotImplementedError

    def from_normal(self, n: Tensor, sigma: Tensor, classes: Tensor, whitening: Whitening) -> Tensor:
        """Standard normal n (B, d) to a sample (B, d)."""
        raise NotImplementedError

    def to_normal(self, z: Tensor, sigma: Tensor, classes: Tensor, whitening: Whitening) -> Tensor:
        """An n (B, d) with from_normal(n) = z."""
        raise NotImplementedError


class Normal(Base):
    """Standard normal.

    Args:
        dim, num_classes: d and K; neither matters.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()

    def log_prob(self, z: Tensor, sigma: Tensor, classes: Tensor, whitening: Whitening) -> Tensor:
        return normal_log_prob(z)

    def from_normal(self, n: Tensor, sigma: Tensor, classes: Tensor, whitening: Whitening) -> Tensor:
        return n

    def to_normal(self, z: Tensor, sigma: Tensor, classes: Tensor, whitening: Whitening) -> Tensor:
        return z


def normal_log_prob(z: Tensor) -> Tensor:
    """log N(z; 0, I) of z (B, d): (B,)."""
    return -0.5 * (z.square().sum(1) + z.shape[1] * math.log(2 * math.pi))


class ClassMixture(Base):
    """K Gaussians a class, noised exactly.

    Args:
        dim, num_classes: d and the number of classes.
        components: K, Gaussians of a class.
        leading: r, coordinates of the common eigenbasis in which a Gaussian has a covariance of its own, at most.
        mixture_above: σ_h, the noise level above which the mixture takes the place of the standard normal.
    """

    is_fitted: Tensor  # (), bool
    log_shares: Tensor  # (C, K)
    rotations: Tensor  # (C, K, r, r)
    means: Tensor  # (C, K, r)
    variances: Tensor  # (C, K, r)
    trailing: Tensor  # (C, d − r)

    @checked
    def __init__(
        self,
        dim: int,
        num_classes: int,
        components: Annotated[int, Range(1, 256)] = 8,
        leading: Annotated[int, Range(1, 4096)] = 64,
        mixture_above: Sigma = 0.5,
    ) -> None:
        super().__init__()
        self.dim, self.leading, self.mixture_above = dim, min(leading, dim), mixture_above
        each = num_classes + 1, components
        self.register_buffer("is_fitted", torch.tensor(False))
        self.register_buffer("log_shares", torch.full(each, -math.log(components)))
        self.register_buffer("rotations", torch.eye(self.leading).repeat(*each, 1, 1))
        self.register_buffer("means", torch.zeros(*each, self.leading))
        self.register_buffer("variances", torch.full((*each, self.leading), 0.25))
        self.register_buffer("trailing", torch.full((each[0], dim - self.leading), 0.25))

    @torch.no_grad()
    def fit(self, statistics: Moments) -> None:
        """Find the Gaussians of each class in some of the data.

        Data that have none to show, or so many coordinates that they have no eigensystem, leave it standard normal.
        """
        if statistics.eigenvectors is None or statistics.sample is None:
            return
        self.is_fitted.fill_(True)
        tables = self.log_shares, self.rotations, self.means, self.variances, self.trailing
        found = Fitting(statistics, statistics.sample, self.log_shares.shape[1], self.leading).fit()
        for table, values in zip(tables, zip(*found, strict=True), strict=True):
            table.copy_(torch.stack(values))

    def _logit(self, sigma: Tensor) -> Tensor:
        """log (h/(1 − h)), shape of σ."""
        ratio = (sigma / self.mixture_above).square()
        return torch.where(self.is_fitted, self.dim / 4 * (ratio - 1 / ratio), -NEVER)

    def _terms(self, z: Tensor, sigma: Tensor, classes: Tensor, whitening: Whitening) -> Tensor:
        """log of the shares of q(z; σ, c): the standard normal's and each Gaussian's, (B, 1 + K)."""
        y, change = whitening.colour(z, sigma, classes)
        v = (y - whitening.class_means[classes]) @ whitening.eigenvectors
        leading, trailing = v[:, : self.leading], v[:, self.leading :]
        turned = torch.einsum("br,ckrs->bcks", leading, self.rotations)  # by those of every class: one product
        u = turned.take_along_dim(classes[:, None, None, None], 1).squeeze(1) - self.means[classes]
        noise = sigma.square()[:, None]
        squares = distances(u, self.variances[classes] + noise[..., None], trailing, self.trailing[classes] + noise)
        each = self.log_shares[classes] - 0.5 * (squares + self.dim * math.log(2 * math.pi)) + change[:, None]
        logit = self._logit(sigma)[:, None]
        normal = normal_log_prob(z)[:, None]
        return torch.cat([nn.functional.logsigmoid(-logit) + normal, nn.functional.logsigmoid(logit) + each], 1)

    def log_prob(self, z: Tensor, sigma: Tensor, classes: Tensor, whitening: Whitening) -> Tensor:
        if not len(whitening.eigenvectors):
            return normal_log_prob(z)
        return self._terms(z, sigma, classes, whitening).logsumexp(1)

    def _shares(self, sigma: Tensor, classes: Tensor) -> Tensor:
        """The shares of the standard normal and of each Gaussian, (B, 1 + K), float64."""
        h = self._logit(sigma.double()).sigmoid()[:, None]
        return torch.cat([1 - h, h * self.log_shares[classes].double().exp()], 1)

    def from_normal(self, n: Tensor, sigma: Tensor, classes: Tensor, whitening: Whitening) -> Tensor:
        if not len(whitening.eigenvectors):
            return n
        chosen, quantile = pick(torch.special.ndtr(n[:, 0].double()), self._shares(sigma, classes))
        first = torch.special.ndtri(quantile.clamp(EDGE, 1 - EDGE)).to(n.dtype)
        n = torch.cat([first[:, None], n[:, 1:]], 1)
        place = classes, (chosen - 1).clamp(min=0)
        u = self._mean(place) + self._deviation(place, sigma) * n
        v = torch.cat([(self.rotations[place] @ u[:, : self.leading, None]).squeeze(2), u[:, self.leading :]], 1)
        z, _ = whitening.whiten(whitening.class_means[classes] + v @ whitening.eigenvectors.T, sigma, classes)
        return torch.where((chosen == 0)[:, None], n, z)

    def to_normal(self, z: Tensor, sigma: Tensor, classes: Tensor, whitening: Whitening) -> Tensor:
        """Of all n, that of the Gaussian with the greatest share in z."""
        if not len(whitening.eigenvectors):
            return z
        chosen = self._terms(z, sigma, classes, whitening).argmax(1)
        place = classes, (chosen - 1).clamp(min=0)
        y, _ = whitening.colour(z, sigma, classes)
        v = (y - whitening.class_means[classes]) @ whitening.eigenvectors
        u = torch.cat([(v[:, None, : self.leading] @ self.rotations[place]).squeeze(1), v[:, self.leading :]], 1)
        n = torch.where((chosen == 0)[:, None], z, (u - self._mean(place)) / self._deviation(place, sigma))
        quantile = put_back(torch.special.ndtr(n[:, 0].double()), chosen, self._shares(sigma, classes))
        return torch.cat([torch.special.ndtri(quantile.clamp(EDGE, 1 - EDGE)).to(n.dtype)[:, None], n[:, 1:]], 1)

    def _mean(self, place: tuple[Tensor, Tensor]) -> Tensor:
        """b_k of the Gaussians at these places, (B, d)."""
        return nn.functional.pad(self.means[place], (0, self.dim - self.leading))

    def _deviation(self, place: tuple[Tensor, Tensor], sigma: Tensor) -> Tensor:
        """(l_k + σ²)^½ of the Gaussians at these places, (B, d)."""
        return (torch.cat([self.variances[place], self.trailing[place[0]]], 1) + sigma.square()[:, None]).sqrt()


def pick(quantile: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Which part a quantile (B,) falls into, of parts with shares (B, n) whose sum is 1, and its quantile there."""
    ends = shares.cumsum(1)
    index = (quantile[:, None] >= ends).sum(1).clamp(max=shares.shape[1] - 1)
    end, share = (part.take_along_dim(index[:, None], 1).squeeze(1) for part in (ends, shares))
    return index, ((quantile - end) / share + 1).clamp(0, 1)


def put_back(quantile: Tensor, index: Tensor, shares: Tensor) -> Tensor:
    """The quantile (B,) of which `pick` makes (index, quantile)."""
    end, share = (part.take_along_dim(index[:, None], 1).squeeze(1) for part in (shares.cumsum(1), shares))
    return end + (quantile - 1) * share
