"""Denoisers known in closed form: the truth that samplers are held against.

For x0 ~ sum_k w_k N(mu_k, S_k) and x = x0 + sigma eps, with C_k = S_k + sigma^2 I:

    p(x; sigma)  = sum_k w_k N(x; mu_k, C_k)
    score        = sum_k r_k C_k^-1 (mu_k - x),     r_k = w_k N(x; mu_k, C_k) / p(x; sigma)
    D            = x + sigma^2 score
"""

import math

import torch
from torch import Tensor


class MixtureDenoiser:
    """The exact denoiser of a Gaussian mixture. A label picks one component, no label is the whole mixture.

    Args:
        means: (K, d).
        covariances: (K, d, d).
        weights: (K,), summing to 1.
        shape: the shape of one sample, (d,) if not given.
    """

    has_density = True
    has_inverse = True
    normalized = True

    def __init__(
        self, means: Tensor, covariances: Tensor, weights: Tensor, shape: tuple[int, ...] | None = None
    ) -> None:
        self.means = means
        self.covariances = covariances
        self.weights = weights
        self.num_classes, d = means.shape
        self.shape = shape or (d,)
        self._eigenvalues, self._basis = torch.linalg.eigh(covariances)

    def _flat(self, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor]:
        """(B, d) and sigma^2 as (B,)."""
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(x.shape[0])
        return x.reshape(x.shape[0], -1), sigma**2

    def _joint(self, x: Tensor, sigma2: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """log w_k N(x; mu_k, C_k), (B, K), and C_k^-1 (mu_k - x) in the eigenbasis of S_k, (B, K, d)."""
        basis = self._basis.to(x)  # (K, d, e)
        projected = (x @ basis.transpose(0, 1).flatten(1)).view(len(x), *self.means.shape)
        delta = (self.means.to(x)[:, None] @ basis)[:, 0] - projected
        variances = self._eigenvalues.to(x) + sigma2[:, None, None]
        log_normal = -0.5 * (delta**2 / variances + (2 * math.pi * variances).log()).sum(-1)
        return self._log_weights(x, labels) + log_normal, delta / variances

    def _log_weights(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """(B, K): the weights' logarithms, or all the weight on the component of the label."""
        if labels is None:
            return self.weights.to(x).log().expand(len(x), -1)
        return torch.where(torch.nn.functional.one_hot(labels, self.num_classes) > 0, 0.0, -math.inf).to(x)

    def log_prob(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """(B,) in nats."""
        return self._joint(*self._flat(x, sigma), labels)[0].logsumexp(1)

    def score(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """(B, *shape)."""
        joint, pull = self._joint(*self._flat(x, sigma), labels)
        weighted = (joint.softmax(1)[:, :, None] * pull).flatten(1)
        return (weighted @ self._basis.to(x).transpose(1, 2).flatten(0, 1)).view_as(x)

    def denoise(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """(B, *shape)."""
        sigma2 = self._flat(x, sigma)[1].view(-1, *[1] * len(self.shape))
        return x + sigma2 * self.score(x, sigma, labels)

    __call__ = denoise

    def inverse(self, z: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """Knothe-Rosenblatt: x_j from z_j through the conditional distribution of x_j given x_1 .. x_{j-1}.

        For diagonal covariances; one coordinate after the other, by bisection of the distribution function.
        """
        assert torch.equal(self.covariances, torch.diag_embed(self.covariances.diagonal(dim1=1, dim2=2)))
        z_flat, sigma2 = self._flat(z, sigma)
        deviations = (self.covariances.diagonal(dim1=1, dim2=2).to(z) + sigma2[:, None, None]).sqrt()
        log_weights = self._log_weights(z, labels)
        columns = []
        for j in range(z_flat.shape[1]):
            target = torch.special.ndtr(z_flat[:, j])
            mean, deviation = self.means[:, j].to(z), deviations[:, :, j]
            low = (mean - 9 * deviation).amin(1)
            high = (mean + 9 * deviation).amax(1)
            weights = log_weights.softmax(1)
            for _ in range(60):
                middle = (low + high) / 2
                cdf = (weights * torch.special.ndtr((middle[:, None] - mean) / deviation)).sum(1)
                low, high = torch.where(cdf < target, middle, low), torch.where(cdf < target, high, middle)
            columns.append((low + high) / 2)
            log_weights = log_weights - 0.5 * ((columns[-1][:, None] - mean) / deviation) ** 2 - deviation.log()
        return torch.stack(columns, 1).view_as(z)


class GaussianDenoiser(MixtureDenoiser):
    """The exact denoiser of N(mean, covariance). Its inverse is mean + (S + sigma^2 I)^(1/2) z.

    Args:
        mean: (d,).
        covariance: (d, d).
        shape: the shape of one sample, (d,) if not given.
    """

    def __init__(self, mean: Tensor, covariance: Tensor, shape: tuple[int, ...] | None = None) -> None:
        super().__init__(mean[None], covariance[None], torch.ones(1), shape)
        self.mean = mean
        self.covariance = covariance

    def inverse(self, z: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """(B, *shape)."""
        z_flat, sigma2 = self._flat(z, sigma)
        scale = (self._eigenvalues[0].to(z) + sigma2[:, None]).sqrt()
        basis = self._basis[0].to(z)
        return (self.mean.to(z) + (z_flat @ basis * scale) @ basis.T).view_as(z)
