r"""Fitting a mixture of Gaussians to each class of some data: what `flows.bases.ClassMixture` takes from them.

Of a class with n images, v = Qᵀ(y − μ_c) in the common eigenbasis. k-means, best of five starts, divides the images
into parts by the r leading coordinates; W_c is their covariance within the parts, W that of all classes together:

    part k with n_k images:    π_k = n_k/n,     R_k b_k = E_k[v],
                               R_k diag(l_k) R_kᵀ = w_k Cov_k(v) + (1 − w_k) (w W_c + (1 − w) W),
                               w_k = n_k/(n_k + a·r),     w = n/(n + a·r)

a is the one in `SHRINKAGES` that makes a fifth of the images, held out, likeliest at `LEVELS`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from flowdiff.flows.context import Moments, Sampled

SHRINKAGES = (0.1, 0.3, 1.0, 3.0)
LEVELS = (0.05, 0.2, 0.5, 1.0)
"""Noise levels at which held-out images choose the shrinkage."""
NUMBERS = 1 << 26  # of the data, that a mixture is fitted to, at most
ROWS = 3 << 14
TIMES = 2  # that the same image is seen, moved within its bins
HELD_OUT = 1 << 10  # different images, at most


class Gaussians(NamedTuple):
    """The K Gaussians of a class, N(v; R_k b_k, R_k diag(l_k) R_kᵀ) of its leading coordinates."""

    log_shares: Tensor  # (K,), log π
    rotations: Tensor  # (K, r, r), R
    means: Tensor  # (K, r), b
    variances: Tensor  # (K, r), l
    trailing: Tensor  # (d − r,), variances of the others

    def log_prob(self, v: Tensor, sigma: float) -> Tensor:
        """log p of v (n, d), noised by σ, but for a constant: (n,)."""
        leading = self.means.shape[1]
        u = torch.einsum("nr,krs->nks", v[:, :leading], self.rotations) - self.means
        squares = distances(u, self.variances + sigma**2, v[:, leading:], self.trailing + sigma**2)
        return (self.log_shares - 0.5 * squares).logsumexp(1)


def distances(u: Tensor, variances: Tensor, trailing: Tensor, rest: Tensor) -> Tensor:
    """−2 log N of each Gaussian but for a constant, (B, K).

    Args:
        u, variances: (B, K, r), of the leading coordinates.
        trailing, rest: (B, d − r), the others and their variances; of any variances the B may be left out.
    """
    own = (u.square() / variances + variances.log()).sum(-1)
    return own + (trailing.square() / rest + rest.log()).sum(-1, keepdim=True)


class Rows:
    """Images of one class in the common eigenbasis, and their parts.

    `within` is W_c, (r, r).

    Args:
        v: (n, d).
        weights: (n,), their sum is 1.
        count: of different images.
        components: K. Of a class with fewer than 4 images a Gaussian, some are there more than once.
        leading: r.
    """

    def __init__(self, v: Tensor, weights: Tensor, count: int, components: int, leading: int) -> None:
        self.count, self.components = count, components
        part = divide(v[:, :leading], weights, min(components, max(1, count // 4)))
        self.shares = torch.zeros(int(part.max()) + 1, dtype=v.dtype).index_add(0, part, weights)
        found = [moments(v[part == k, :leading], weights[part == k]) for k in range(len(self.shares))]
        self.means, self.covariances = (torch.stack(m) for m in zip(*found, strict=True))
        self.within = (self.shares[:, None, None] * self.covariances).sum(0)
        self.trailing = weights @ (v[:, leading:] - weights @ v[:, leading:]).square()

    def fit(self, pooled: Tensor, shrinkage: float) -> Gaussians:
        """The Gaussians, given W and a."""
        r = len(pooled)
        w = self.count / (self.count + shrinkage * r)
        counts = self.shares[:, None, None] * self.count
        kept = counts / (counts + shrinkage * r)
        covariances = kept * self.covariances + (1 - kept) * (w * self.within + (1 - w) * pooled)
        variances, rotations = torch.linalg.eigh(covariances)
        means = (self.means[:, None] @ rotations).squeeze(1)
        index = torch.arange(self.components) % len(self.shares)
        log_shares = (self.shares / index.bincount()).log()
        return Gaussians(
            log_shares[index], rotations[index], means[index], variances[index].clamp(min=0), self.trailing
        )


def divide(u: Tensor, weights: Tensor, parts: int) -> Tensor:
    """Which of so many parts of k-means each row of u (n, d) belongs to, (n,)."""
    from sklearn.cluster import KMeans

    means = KMeans(parts, n_init=5, max_iter=100, random_state=0)
    return torch.as_tensor(means.fit(u.numpy(), sample_weight=weights.numpy()).labels_).long()


def moments(v: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of v (n, r)."""
    weights = weights / weights.sum()
    mean = weights @ v
    return mean, (weights[:, None] * (v - mean)).T @ (v - mean)


class Fitting:
    """The data that the mixtures of all classes are fitted to.

    Args:
        statistics: of the training data, with Q.
        sample: draws of them.
        components, leading: K and r.
    """

    def __init__(
        self,
        statistics: Moments,
        sample: Callable[[int], Sampled],
        components: int,
        leading: int,
    ) -> None:
        assert statistics.eigenvectors is not None
        drawn = sample(min(ROWS, NUMBERS // len(statistics.eigenvectors)))
        self.times = min(drawn.times, TIMES)
        rows = slice(len(drawn.x) // drawn.times * self.times)
        self.labels, self.weights = drawn.classes[rows], drawn.weights[rows].double()
        self.components, self.leading = components, leading
        self.v = drawn.x[rows].to(statistics.eigenvectors) @ statistics.eigenvectors
        self.v_means = statistics.class_means.to(self.v) @ statistics.eigenvectors

    def _is_of(self, c: int) -> Tensor:
        """Which rows are of class c; of the null class, the last, all are."""
        return (self.labels == c) | (c == len(self.v_means) - 1)

    def gather(self, chosen: Tensor) -> list[tuple[Tensor, Tensor, int] | None]:
        """v (n, d), weights (n,) and how many different images there are, of each class among the chosen rows (M,)."""
        return [self._gather(c, chosen & self._is_of(c)) for c in range(len(self.v_means))]

    def _gather(self, c: int, chosen: Tensor) -> tuple[Tensor, Tensor, int] | None:
        count = int(chosen.sum()) // self.times
        if count < 2:
            return None
        weights = self.weights[chosen]
        return (self.v[chosen] - self.v_means[c]).double(), weights / weights.sum(), count

    def divide(self, chosen: Tensor) -> list[Rows | None]:
        """Each class's rows among the chosen ones, with their parts."""
        return [part and Rows(*part, self.components, self.leading) for part in self.gather(chosen)]

    def choose_shrinkage(self) -> float:
        """a."""
        different = len(self.v) // self.times
        order = torch.randperm(different, generator=torch.Generator().manual_seed(0))
        is_held_out = (order < min(different // 5, HELD_OUT)).repeat(self.times)
        seen, unseen = self.divide(~is_held_out), self.gather(is_held_out)

        def held_out(shrinkage: float) -> float:
            total = 0.0
            for gaussians, part in zip(fit_rows(seen, shrinkage), unseen, strict=True):
                if gaussians and part:
                    v, weights, count = part
                    noise = torch.randn(v.shape, generator=torch.Generator().manual_seed(0), dtype=v.dtype)
                    total += count * sum(float(weights @ gaussians.log_prob(v + s * noise, s)) for s in LEVELS)
            return total

        return max(SHRINKAGES, key=held_out)

    def fit(self) -> list[Gaussians]:
        """The Gaussians of each class, the null class's last, which are those of a class without images too."""
        found = fit_rows(self.divide(torch.ones(len(self.v), dtype=torch.bool)), self.choose_shrinkage())
        null = found[-1]
        assert null is not None
        return [part or null for part in found]


def fit_rows(rows: list[Rows | None], shrinkage: float) -> list[Gaussians | None]:
    """The Gaussians of each class's rows, the null class's last; of a class without rows none."""
    of_classes = [part for part in rows[:-1] if part] or [part for part in rows if part]
    pooled = torch.stack([part.within for part in of_classes]).mean(0)
    return [part.fit(pooled, shrinkage) if part else None for part in rows]
