r"""The Wiener filter with a covariance for each class: the best that is linear in x once the class is known, as far as
the covariances are.

    E[x0 | x, σ, c] = x − σ² (Σ_c + σ²)⁻¹ (x − μ_c),     Σ_c = β_c Σ + (1 − β_c) S_c

with S_c the covariance of the n_c training samples v_i (centred) of a class, shrunk towards Σ, that of all classes
together, as far as S_c is uncertain (Ledoit & Wolf 2004, doi:10.1016/S0047-259X(03)00096-4, with another target):

    β_c = min(1, (Σ_i |v_i|⁴/n_c − |S_c|²) / (n_c |S_c − Σ|²)).

`data.statistics` has the filter with one covariance, which denoising errors are divided by.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from flowdiff.metrics.base import Evaluand

MOST_WORK = 10**12  # K d³: half a minute of factorisations


def fits(model: Evaluand) -> bool:
    """Whether there is such a filter: the model is told the class, the covariance is known and not too large."""
    known = model.statistics is not None and model.statistics.eigenvectors is not None
    return known and bool(model.denoiser.num_classes) and work(model) <= MOST_WORK


def work(model: Evaluand) -> int:
    """K d³."""
    return int(model.denoiser.num_classes) * math.prod(model.data.shape) ** 3


def shrunk(rows: Tensor, pooled: Tensor) -> Tensor:
    """Σ_c without dequantisation noise, (d, d), of centred rows (n, d) and Σ (d, d); Σ where there is at most one row.

    The products of the rows are in their own precision, all else in that of Σ.
    """
    n = len(rows)
    if n < 2:
        return pooled
    own = (rows.T @ rows).to(pooled) / n
    apart = (own - pooled).square().sum().item()
    fourth = rows.to(pooled).square().sum(1).square().mean().item()
    uncertain = (fourth - own.square().sum().item()) / n
    share = 1.0 if apart <= uncertain else uncertain / apart
    return share * pooled + (1 - share) * own


def errors(model: Evaluand, x0: Tensor, noise: Tensor, labels: Tensor, sigmas: Sequence[float]) -> list[float]:
    """The filter's RMSE at each level on x0 + σε: x0 and noise (N, *shape), labels (N,). On the CPU, in float64."""
    assert model.statistics is not None and model.statistics.eigenvectors is not None
    train, classes, noise_variance = model.data.measured_rows()
    basis = model.statistics.eigenvectors.cpu().double()
    pooled = basis * (model.statistics.eigenvalues.cpu().double() - noise_variance) @ basis.T
    unit = torch.eye(len(basis), dtype=torch.float64)
    totals = [0.0] * len(sigmas)
    for c in labels.unique().tolist():
        mean = model.statistics.class_means[c].cpu().double()
        covariance = shrunk(train[classes == c].flatten(1) - mean.float(), pooled) + noise_variance * unit
        clean = x0[labels == c].flatten(1).double()
        eps = noise[labels == c].flatten(1).double()
        for i, sigma in enumerate(sigmas):
            x = clean + sigma * eps
            factor = torch.linalg.cholesky(covariance + sigma**2 * unit)
            denoised = x - sigma**2 * torch.cholesky_solve((x - mean).T, factor).T
            totals[i] += (denoised - clean).square().sum().item()
    return [math.sqrt(total / x0.numel()) for total in totals]
