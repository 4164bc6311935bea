r"""How well Markov chains have mixed: split R-hat and effective sample size (Vehtari et al. 2021, arXiv:1903.08008).

Of M chains of N draws, each already half of a chain, with means m_j and variances s_j^2:

    B = N var(m_j),   W = mean(s_j^2),   var+ = (N - 1)/N W + B/N
    R-hat = sqrt(var+ / W)                                   1 where the chains agree
    ESS   = M N / tau,   tau = -1 + 2 sum_k P_k,   P_k = rho_2k + rho_2k+1
    rho_t = 1 - (W - mean_j autocovariance_j(t)) / var+

with P_k up to the first that is not positive, made monotone (Geyer's sequence), and the rho that follows it. Both
are taken of the draws' normal scores, z = Phi^-1((rank - 3/8) / (M N + 1/4)), so that they exist for any
distribution; R-hat is the larger of that of z and that of the scores of |x - median|.
"""

import torch
from torch import Tensor


def split(draws: Tensor) -> Tensor:
    """Each chain's two halves as chains: (M, N, q) to (2M, N // 2, q), without the middle draw of an odd N."""
    half = draws.shape[1] // 2
    return torch.cat([draws[:, :half], draws[:, draws.shape[1] - half :]])


def normal_scores(draws: Tensor) -> Tensor:
    """(M, N, q) to the normal scores of their ranks among all draws of a quantity.

    Equal draws share the mean of their ranks; one that is not a number counts as the largest.
    """
    from scipy.stats import rankdata

    m, n, q = draws.shape
    values = draws.double().reshape(m * n, q).T.nan_to_num(nan=torch.inf)
    rank = torch.from_numpy(rankdata(values.numpy(), axis=-1))
    return torch.special.ndtri((rank - 0.375) / (m * n + 0.25)).T.reshape(m, n, q)


def plain_rhat(chains: Tensor) -> Tensor:
    """sqrt(var+ / W) of chains (M, N, q), not split again: (q,)."""
    n = chains.shape[1]
    within = chains.var(1).mean(0)
    return ((n - 1) / n + chains.mean(1).var(0) / within).sqrt()


def rhat(draws: Tensor) -> Tensor:
    """The rank-normalised split R-hat.

    Args:
        draws: (M, N, q), M >= 1 chains of N >= 4 draws of q quantities.

    Returns:
        (q,) float64; NaN for a quantity that never changes.
    """
    halves = split(draws.double())
    ordered = halves.flatten(0, 1).sort(0).values
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    folded = (halves - middle).abs()
    return torch.maximum(plain_rhat(normal_scores(halves)), plain_rhat(normal_scores(folded)))


def ess(draws: Tensor) -> Tensor:
    """The bulk effective sample size.

    Args:
        draws: (M, N, q), M >= 1 chains of N >= 8 draws of q quantities.

    Returns:
        (q,) float64; NaN for a quantity that never changes.
    """
    return plain_ess(normal_scores(split(draws)))


def plain_ess(chains: Tensor) -> Tensor:
    """M N / tau of chains (M, N, q), not split again, N >= 4: (q,)."""
    m, n, _ = chains.shape
    chains = chains.double()
    centred = chains - chains.mean(1, keepdim=True)
    spectrum = torch.fft.rfft(centred, 2 * n, dim=1).abs().square()
    covariance = torch.fft.irfft(spectrum, 2 * n, dim=1)[:, :n].mean(0) / n
    within = covariance[0] * n / (n - 1)
    total = covariance[0] + (chains.mean(1).var(0) if m > 1 else 0.0)
    rho = 1 - (within - covariance) / total
    rho[0] = 1.0
    pairs = rho[: n - n % 2].unflatten(0, (-1, 2)).sum(1)[: (n - 3) // 2 + 1]
    used = (pairs > 0).cumprod(0)
    used[-1] = 0  # its even term alone, as at any other end
    end = used.sum(0)
    last = rho.gather(0, 2 * end[None])[0].clamp(min=0)
    tau = -1 + 2 * (pairs.cummin(0).values * used).sum(0) + last
    return m * n / tau.clamp(min=1 / torch.tensor(float(m * n)).log10())
