r"""Whitening: an exactly invertible map in front of the flow, u = T(σ)·(x − m(σ, c)), affine in all but the last.

T = Q diag(d_i^{−1/2}) Qᵀ is symmetric, so that pixels stay pixels; its log-determinant −½ Σ log d_i is part of
log p. With the flow at its start (the identity) the model is the Gaussian N(m, Q diag(d) Qᵀ), whose denoiser is

    D = x + σ²·s = x − σ² Q diag(1/d) Qᵀ (x − m),      linear, and good before the first step.

    scalar     m = 0                d_i = σ² + σ_data²                                 EDM's c_in
    gaussian   m = μ_c              d_i = σ² + λ_i                     the Wiener filter
    annealed   m = w·μ_c            d_i = σ² + w·λ_i + (1 − w)·σ_data²,  w = σ²/(σ² + σ_data²)

    standardized   annealed, and then every coordinate of u brought to mean 0 and variance 1 under the data's moments,
                   u_i ← (u_i − E[u_i | c]) / Var(u_i)^½,   Var(u_i) = Σ_j Q_ij² (λ_j + σ²)/d_j:
                   pixels that hardly vary (an image's border) are stretched to the size of the others, and at its
                   start the model is a product of pixel-wise Gaussians at low noise, the Wiener filter at high noise

    gaussianised   standardized, but of x' = (1 − g)·x_i + g·(m_i + (v_i + σ²)^½·Φ⁻¹(F_i(x_i; σ))), with F_i the
                   distribution function of pixel i noised by σ, m_i and v_i its mean and variance without noise, and
                   g = 1/(1 + (σ/σ_g)⁴) (`bijections.marginals`): at low noise a pixel that is mostly black, or either
                   black or white, becomes Gaussian, and at its start the model is the product of the pixels' own
                   distributions; above σ_g it is standardized, because between both, where the two modes of a pixel
                   begin to meet, the bent pixels make the others' linear influence hard to learn. F_i, m_i and v_i
                   are those of all classes together, μ_c and λ of the data within one: where the classes hardly
                   overlap (each of one colour, say), what is moved to a Gaussian as a whole ends far from Gaussian
                   within a class. So the start's likelihood of training data is measured, and where bending makes it
                   worse at any low σ, g is 0

Every learned deviation of the flow is multiplied by κ(σ) = (σ_data/√(σ² + σ_data²))^kappa_power. With the power 1, an
error of size e in u-space, which costs σ·e in D at high noise, costs at most σ_data·e. With 2, the networks stay of
order 1: what there is to learn beyond the Gaussian, D − D_Wiener, itself vanishes in u-space like (σ_data/σ)².

Of data with more than 4,096 coordinates (`flows.context.MOST_DIM`) Q is the identity and λ their variances.
"""

from typing import Any

import torch
from torch import Tensor, nn

from flowdiff.bijections.marginals import PIECES, Marginals, pull, pull_inverse
from flowdiff.data.statistics import DataStatistics, Sample
from flowdiff.flows import bases
from flowdiff.flows.context import MOST_DIM
from flowdiff.options import Exponent, Sigma, checked

LEVELS = (0.002, 0.02, 0.05, 0.1, 0.2, 0.3)
"""Noise levels at which `Gaussianised` compares its start with that of `Standardized`."""
MEASURED = 1 << 17  # coordinates that are compared, about
TOLERANCE = 1e-4  # nats per dimension


class Precondition(nn.Module):
    """The whitening of data with d coordinates and K classes. Subclasses give `weights`.

    Args:
        dim: d.
        num_classes: K; row K of the means is the null class's.
        sigma_data: EDM's σ_data until `fit` measures it.
        kappa_power: exponent of κ.
    """

    sigma_data: Tensor
    class_means: Tensor
    eigenvalues: Tensor
    eigenvectors: Tensor

    @checked
    def __init__(
        self,
        dim: int,
        num_classes: int,
        sigma_data: float = 0.5,
        kappa_power: Exponent = 1.0,
    ) -> None:
        super().__init__()
        self.kappa_power = kappa_power
        self.register_buffer("sigma_data", torch.tensor(float(sigma_data)))
        self.register_buffer("class_means", torch.zeros(num_classes + 1, dim))
        self.register_buffer("eigenvalues", torch.full((dim,), float(sigma_data) ** 2))
        self.register_buffer("eigenvectors", torch.eye(dim) if dim <= MOST_DIM else torch.empty(0, 0))

    def fit(self, statistics: DataStatistics) -> None:
        """Take the moments of the training split; they are saved with the weights."""
        self.sigma_data.fill_(statistics.sigma_data)
        self.class_means.copy_(statistics.class_means)
        self.eigenvalues.copy_(statistics.eigenvalues)
        if statistics.eigenvectors is not None:
            self.eigenvectors.copy_(statistics.eigenvectors)

    def kappa(self, sigma: Tensor) -> Tensor:
        """κ(σ) = (σ_data/√(σ² + σ_data²))^kappa_power, shape of σ."""
        return (self.sigma_data / (sigma.square() + self.sigma_data.square()).sqrt()) ** self.kappa_power

    def weights(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1) weights of the data's mean and covariance (the rest is σ_data²·I) at σ (B, 1)."""
        raise NotImplementedError

    def _moments(self, sigma: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        sigma = sigma.reshape(-1, 1)
        of_mean, of_covariance = self.weights(sigma)
        isotropic = (1 - of_covariance) * self.sigma_data.square()
        variances = sigma.square() + of_covariance * self.eigenvalues + isotropic
        return of_mean * self.class_means[classes], variances

    def _scale(self, x: Tensor, scale: Tensor) -> Tensor:
        """Q diag(scale) Qᵀ x for x and scale (B, d); Q is the identity where the covariance is diagonal."""
        if not len(self.eigenvectors):
            return x * scale
        return (x @ self.eigenvectors * scale) @ self.eigenvectors.T

    def whiten(self, y: Tensor, sigma: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """The affine map alone: y (B, d), σ (B,), classes (B,) in [0, K] to u (B, d) and log|du/dy| (B,)."""
        mean, variances = self._moments(sigma, classes)
        return self._scale(y - mean, variances.rsqrt()), -0.5 * variances.log().sum(1)

    def colour(self, u: Tensor, sigma: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """The y with whiten(y) = u, and log|dy/du| (B,)."""
        mean, variances = self._moments(sigma, classes)
        logdet = 0.5 * variances.log().sum(1)
        return mean + self._scale(u, variances.sqrt()), logdet

    def forward(self, x: Tensor, sigma: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, d), σ (B,), classes (B,) in [0, K] to u (B, d) and log|du/dx| (B,)."""
        return self.whiten(x, sigma, classes)

    def inverse(self, u: Tensor, sigma: Tensor, classes: Tensor) -> Tensor:
        """The x with forward(x) = u."""
        return self.colour(u, sigma, classes)[0]


class Scalar(Precondition):
    """EDM's c_in = 1/√(σ² + σ_data²) (Karras et al. 2022, table 1)."""

    def weights(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        zero = torch.zeros_like(sigma)
        return zero, zero

    def whiten(self, y: Tensor, sigma: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        variance = (sigma.square() + self.sigma_data.square()).reshape(-1, 1)
        return y * variance.rsqrt(), -0.5 * y.shape[1] * variance[:, 0].log()

    def colour(self, u: Tensor, sigma: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        variance = (sigma.square() + self.sigma_data.square()).reshape(-1, 1)
        return u * variance.sqrt(), 0.5 * u.shape[1] * variance[:, 0].log()


class Gaussian(Precondition):
    """Full whitening by the noised data's covariance at every σ."""

    def weights(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        one = torch.ones_like(sigma)
        return one, one


class Annealed(Precondition):
    """Isotropic at low noise, where a network learns from pixels; the Wiener filter's at high noise."""

    def weights(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        w = sigma.square() / (sigma.square() + self.sigma_data.square())
        return w, w


class Standardized(Annealed):
    """Annealed, then each coordinate standardised by the moments that the data have at this σ."""

    def _standard_deviation(self, sigma: Tensor, variances: Tensor) -> Tensor:
        ratio = (self.eigenvalues + sigma.reshape(-1, 1).square()) / variances
        return (ratio @ self.eigenvectors.square().T if len(self.eigenvectors) else ratio).sqrt()

    def whiten(self, y: Tensor, sigma: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        _, variances = self._moments(sigma, classes)
        scale = self._standard_deviation(sigma, variances)
        u = self._scale(y - self.class_means[classes], variances.rsqrt())
        return u / scale, -0.5 * variances.log().sum(1) - scale.log().sum(1)

    def colour(self, u: Tensor, sigma: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        _, variances = self._moments(sigma, classes)
        scale = self._standard_deviation(sigma, variances)
        logdet = 0.5 * variances.log().sum(1) + scale.log().sum(1)
        return self.class_means[classes] + self._scale(u * scale, variances.sqrt()), logdet


class Gaussianised(Standardized):
    """Standardized, after each coordinate was made Gaussian by its own noised marginal, at low noise.

    Args:
        dim, num_classes, sigma_data, kappa_power: as for every whitening.
        gaussian_below: σ_g, the noise level below which it is.
    """

    edges: Tensor
    masses: Tensor
    bend: Tensor

    @checked
    def __init__(
        self,
        dim: int,
        num_classes: int,
        sigma_data: float = 0.5,
        kappa_power: Exponent = 1.0,
        gaussian_below: Sigma = 0.15,
    ) -> None:
        super().__init__(dim, num_classes, sigma_data, kappa_power)
        self.gaussian_below = gaussian_below
        self.register_buffer("edges", torch.linspace(-1, 1, PIECES + 1))
        self.register_buffer("masses", torch.full((dim, PIECES), 1 / PIECES))
        self.register_buffer("bend", torch.ones(()))  # 0: standardized at every σ

    def fit(self, statistics: DataStatistics) -> None:
        super().fit(statistics)
        marginals = statistics.marginals()
        self.edges.copy_(marginals.edges)
        self.masses.copy_(marginals.masses)
        self.bend.fill_(1)
        if statistics.sample is not None and self._begins_worse(statistics.sample(-(-MEASURED // len(self.masses)))):
            self.bend.fill_(0)

    @torch.no_grad()
    def _begins_worse(self, sample: Sample) -> bool:
        """Whether at some σ the sample is less likely at the flow's start than it is without bending."""
        for i, level in enumerate(LEVELS):
            noise = torch.randn(sample.x.shape, generator=torch.Generator().manual_seed(i))
            x = (sample.x + level * noise).to(self.edges)
            gain = 0.0
            for rows in torch.arange(len(x)).split(max(1, MEASURED // x.shape[1])):
                given = x[rows], x.new_full((len(rows),), level), sample.classes[rows].to(x.device)
                ours, theirs = normal_log_prob(*self(*given)), normal_log_prob(*self.whiten(*given))
                gain += float((sample.weights[rows] * (ours - theirs).cpu()).sum())
            if not gain >= -TOLERANCE * x.shape[1]:  # NaN too
                return True
        return False

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.setdefault(f"{prefix}bend", torch.ones(()))  # checkpoints from before it
        super()._load_from_state_dict(state_dict, prefix, *args)

    def share(self, sigma: Tensor) -> Tensor:
        """g(σ), shape of σ."""
        return self.bend / (1 + (sigma / self.gaussian_below) ** 4)

    @property
    def _marginals(self) -> Marginals:
        return Marginals(self.edges, self.masses)

    def forward(self, x: Tensor, sigma: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        y, log_slope = pull(x, sigma, self._marginals, self.share(sigma))
        u, logdet = self.whiten(y.to(x.dtype), sigma, classes)
        return u, logdet + log_slope.sum(1).to(x.dtype)

    def inverse(self, u: Tensor, sigma: Tensor, classes: Tensor) -> Tensor:
        y, _ = self.colour(u, sigma, classes)
        return pull_inverse(y, sigma, self._marginals, self.share(sigma)).to(u.dtype)


def normal_log_prob(u: Tensor, logdet: Tensor) -> Tensor:
    """log N(u; 0, I) + logdet of u (B, d) and logdet (B,): (B,), float64."""
    return logdet.double() + bases.normal_log_prob(u.double())
