r"""Images whose best denoiser is known: a mixture of Gaussians for each class, in d coordinates.

    p(x; σ | c) = Σ_k π_k N(x; μ_k, S_k + σ²I),        k among the components of class c, S_k = Q_k diag(λ_k) Q_kᵀ,
    D*(x; σ, c) = x + σ² ∇x log p = x − σ² Σ_k r_k Q_k (Q_kᵀ(x − μ_k) / (λ_k + σ²)),      r_k = p(k | x, σ, c).

No denoiser has a smaller E|D − x0|², and E|D − x0|² = E|D* − x0|² + E|D − D*|² for each.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flowdiff.data.base import ImageData
from flowdiff.metrics.class_filter import shrunk


@dataclass(frozen=True)
class ClassMixture:
    """M Gaussians in d coordinates, each of one of K classes.

    Attributes:
        weights: (M,), of all classes together; their sum is 1.
        classes: (M,), in [0, K).
        means: (M, d), μ.
        eigenvalues: (M, d), λ > 0.
        eigenvectors: (M, d, d), Q, one eigenvector a column.
    """

    weights: Tensor
    classes: Tensor
    means: Tensor
    eigenvalues: Tensor
    eigenvectors: Tensor

    @classmethod
    def fit(cls, x: Tensor, labels: Tensor, components: int, noise_variance: float) -> "ClassMixture":
        """k-means within each class (the best of five), and a covariance for each cluster.

        The covariance is shrunk towards that of its class, which is shrunk towards that of all (`shrunk`), each around
        the clusters' means; then `noise_variance`, dequantisation's, is added.

        Args:
            x: (N, d), the centres of the pixels' bins.
            labels: (N,).
            components: of each class.
            noise_variance: (2/L)²/12 for L levels.
        """
        from sklearn.cluster import KMeans

        x, parts = x.double(), torch.zeros(len(x), dtype=torch.int64)
        for c in labels.unique().tolist():
            rows = labels == c
            found = KMeans(components, n_init=5, random_state=0).fit_predict(x[rows].numpy())
            parts[rows] = torch.from_numpy(found).long() + c * components
        names = parts.unique()
        means = torch.stack([x[parts == part].mean(0) for part in names])
        centred = x - means[torch.searchsorted(names, parts)]
        pooled = centred.T @ centred / (len(x) - len(names))
        covariances = []
        for part in names.tolist():
            of_class = shrunk(centred[parts // components == part // components], pooled)
            covariances.append(shrunk(centred[parts == part], of_class))
        eigenvalues, eigenvectors = torch.linalg.eigh(torch.stack(covariances))
        weights = torch.stack([(parts == part).double().mean() for part in names])
        return cls(weights, names // components, means, eigenvalues.clamp(min=0) + noise_variance, eigenvectors)

    @classmethod
    def of_images(cls, data: ImageData, components: int = 8) -> "ClassMixture":
        """That of a training split."""
        x, labels, noise_variance = data.measured_rows()
        return cls.fit(x.flatten(1), labels, components, noise_variance)

    def to(self, dtype: torch.dtype) -> "ClassMixture":
        """In another precision."""
        floats = (self.weights, self.means, self.eigenvalues, self.eigenvectors)
        weights, means, eigenvalues, eigenvectors = (t.to(dtype) for t in floats)
        return ClassMixture(weights, self.classes, means, eigenvalues, eigenvectors)

    def sample(self, n: int, noise_variance: float = 0.0) -> tuple[Tensor, Tensor]:
        """Draw x0 (n, d) and labels (n,) by torch's global generator.

        Args:
            n: how many.
            noise_variance: that each coordinate is to lack, to be added afterwards.
        """
        parts = torch.multinomial(self.weights, n, replacement=True)
        z = torch.randn(n, self.means.shape[1], dtype=self.means.dtype)
        z = z * (self.eigenvalues[parts] - noise_variance).clamp(min=0).sqrt()
        return self.means[parts] + (self.eigenvectors[parts] @ z[..., None])[..., 0], self.classes[parts]

    def score_and_log_prob(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """∇x log p(x; σ, c) and log p(x; σ, c), (B, d) and (B,).

        Args:
            x: (B, d), noised.
            sigma: (B,).
            labels: (B,); None: of all classes together.
        """
        priors = self.weights.log().expand(len(x), -1)
        if labels is not None:
            priors = priors.masked_fill(self.classes != labels[:, None], -math.inf).log_softmax(1)
        y = torch.einsum("bi,mij->bmj", x, self.eigenvectors)
        y = y - torch.einsum("mi,mij->mj", self.means, self.eigenvectors)
        variances = self.eigenvalues + sigma.square()[:, None, None]
        pull = y / variances
        joint = priors - 0.5 * ((y * pull).sum(2) + variances.log().sum(2) + x.shape[1] * math.log(2 * math.pi))
        shares = joint.softmax(1)
        score = -torch.einsum("bmj,mij->bi", shares[..., None] * pull, self.eigenvectors)
        return score, joint.logsumexp(1)

    def denoise(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """D*(x; σ, c), (B, d); arguments as in `score_and_log_prob`."""
        return x + sigma.square()[:, None] * self.score_and_log_prob(x, sigma, labels)[0]
