r"""First and second moments and histograms of the training data, and the linear denoiser that they define.

With class means μ_c and the within-class covariance Σ = Q diag(λ) Qᵀ, the Gaussian model x0 | c ~ N(μ_c, Σ)
under x = x0 + σε has the posterior mean (the Wiener filter)

    E[x0 | x, σ, c] = μ_c + Q diag(λ / (λ + σ²)) Qᵀ (x − μ_c).

It is the reference of every denoising error in this project: linear for each class, with one covariance for all of
them. A filter with a covariance for each class is linear too, and better where the classes differ
(`metrics.class_filter`). Data with more than MOST_DIM coordinates have no
eigensystem that fits into memory: their Σ is taken as diagonal, Q as the identity.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from flowdiff.bijections.marginals import Marginals
from flowdiff.data.loader import Rows
from flowdiff.errors import FlowdiffError
from flowdiff.flows.context import MOST_DIM


class Sample(NamedTuple):
    """Some rows of data, the same for every run: as many of each class, however rare it is.

    Attributes:
        x: (M, d), dequantised.
        classes: (M,), K (the null class) for data without.
        weights: (M,), with which means over these rows estimate those over all; their sum is 1.
        times: how often each row of the data comes, one after all others.
    """

    x: Tensor
    classes: Tensor
    weights: Tensor
    times: int = 1

    @classmethod
    def from_data(cls, x: Rows, labels: Tensor | None, num_classes: int, bin_width: float, rows: int) -> "Sample":
        """About `rows` of x (N, d), at least one of each class in labels (N,), each moved within its bin.

        Where there are fewer, each comes several times, moved anew.
        """
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(len(x), generator=generator)
        if labels is None or not num_classes:
            labels = torch.full((len(x),), num_classes)
        classes, sizes = labels.unique(return_counts=True)
        each = max(1, rows // len(classes))
        own = [order[labels[order] == c][:each] for c in classes]
        weights = torch.cat([(n / len(x) / len(part)).repeat(len(part)) for n, part in zip(sizes, own, strict=True)])
        times = max(1, round(rows / len(weights)))
        index = torch.cat(own).repeat(times)
        found = x[index]
        noise = torch.rand(found.shape, generator=generator) - 0.5
        return cls(found + bin_width * noise, labels[index], weights.repeat(times) / times, times)


@dataclass(frozen=True)
class DataStatistics:
    """Moments of data with d coordinates and K classes.

    Attributes:
        class_means: (K + 1, d); the last row is the global mean, used for the null class.
        eigenvalues: (d,), λ of the within-class covariance, ≥ 0, descending; of a diagonal one in the data's order.
        eigenvectors: (d, d), Q, one eigenvector a column; None: the covariance is diagonal.
        sigma_data: standard deviation of all coordinates around their common mean (EDM's σ_data).
        marginals: measures the histogram of each coordinate, which takes seconds and which most models do not need.
        sample: some of the data, see `Sample`; None: there are none to be had.
    """

    class_means: Tensor
    eigenvalues: Tensor
    eigenvectors: Tensor | None
    sigma_data: float
    marginals: Callable[[], Marginals]
    sample: Callable[[int], Sample] | None = None

    @classmethod
    def from_data(
        cls, x: Tensor, labels: Tensor | None, num_classes: int, noise_variance: float = 0.0
    ) -> "DataStatistics":
        """Measure the moments of x (N, *shape), labels (N,) in [0, K).

        Args:
            x: centres of the pixels' bins, or points.
            labels: None for data without classes.
            num_classes: K.
            noise_variance: of noise that is added to each coordinate afterwards: dequantisation's, (2/L)²/12.

        Raises:
            FlowdiffError: a value that is not finite, or fewer than two samples.
        """
        flat = x.detach().flatten(1).double()
        if len(flat) < 2:
            raise FlowdiffError(f"the training split has {len(flat)} sample(s): statistics need at least 2")
        bad = ~flat.isfinite().all(1)
        if bad.any():
            first = int(bad.nonzero()[0, 0])
            raise FlowdiffError(f"training sample {first} holds a value that is not finite: remove or repair it")
        mean = flat.mean(0)
        means = mean.repeat(num_classes + 1, 1)
        centred = flat - mean
        if labels is not None and num_classes:
            for c in range(num_classes):
                rows = labels == c
                if rows.any():
                    means[c] = flat[rows].mean(0)
            centred = flat - means[labels]
        if flat.shape[1] > MOST_DIM:
            eigenvalues, eigenvectors = centred.square().mean(0), None
        else:
            eigenvalues, eigenvectors = torch.linalg.eigh(centred.T @ centred / len(flat))
            eigenvalues, eigenvectors = eigenvalues.flip(0), eigenvectors.flip(1).float().contiguous()
        return cls(
            class_means=means.float(),
            eigenvalues=(eigenvalues.clamp(min=0) + noise_variance).float(),
            eigenvectors=eigenvectors,
            sigma_data=float((flat.var(correction=0) + noise_variance).sqrt()),
            marginals=functools.partial(Marginals.from_data, x.detach().flatten(1), (12 * noise_variance) ** 0.5),
            sample=functools.partial(
                Sample.from_data, x.detach().flatten(1), labels, num_classes, (12 * noise_variance) ** 0.5
            ),
        )

    def wiener(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """The Wiener filter's estimate of x0 from x (B, *shape) at σ (B,); labels (B,), or None for no class."""
        flat = x.flatten(1)
        rows = self.class_means[-1:] if labels is None else self.class_means[labels.to(self.class_means.device)]
        rows = rows.to(flat)
        values = self.eigenvalues.to(flat)
        gain = values / (values + sigma.to(flat).reshape(-1, 1).square())
        if self.eigenvectors is None:
            return (rows + (flat - rows) * gain).reshape(x.shape)
        basis = self.eigenvectors.to(flat)
        return (rows + ((flat - rows) @ basis * gain) @ basis.T).reshape(x.shape)

    def log_prob(self, x: Tensor, sigma: float, labels: Tensor | None = None) -> Tensor:
        """log N(x; μ_c, Σ + σ²) in nats, of the Gaussian that `wiener` belongs to: x (B, *shape) → (B,), float64."""
        rows = self.class_means[-1:] if labels is None else self.class_means[labels.to(self.class_means.device)]
        centred = x.flatten(1).to(rows.device, torch.float64) - rows.double()
        along = centred if self.eigenvectors is None else centred @ self.eigenvectors.double()
        variances = self.eigenvalues.double() + sigma**2
        return -0.5 * (along.square() / variances + (2 * math.pi * variances).log()).sum(1)
