"""R-hat and effective sample size: closed forms, and the numbers of ArviZ 0.21."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from flowdiff.samplers.chains import ess, normal_scores, plain_ess, plain_rhat, rhat, split


def ar1(phi: float, chains: int, draws: int, seed: int) -> Tensor:
    """x_t = phi x_{t-1} + (1 - phi^2)^(1/2) e_t with standard normal e_t and x_0: (chains, draws, 1)."""
    generator = np.random.default_rng(seed)
    x = np.zeros((chains, draws))
    x[:, 0] = generator.standard_normal(chains)
    for t in range(1, draws):
        x[:, t] = phi * x[:, t - 1] + math.sqrt(1 - phi**2) * generator.standard_normal(chains)
    return torch.tensor(x)[:, :, None]


@pytest.mark.parametrize(
    ("case", "rounded", "expected"),
    [
        ((0.5, 4, 1000, 0), True, (1.0016728886, 1.0016996692, 1182.971732, 1181.733686)),
        ((0.9, 4, 1000, 1), False, (1.0119469857, 1.0119399728, 216.839348, 216.241153)),
        ((-0.5, 4, 500, 2), False, (1.0025867453, 0.9987696892, 6602.059991, 6602.059991)),
        ((0.0, 2, 101, 3), False, (1.0028037862, 1.0029045616, 180.706487, 183.627604)),
        ((0.99, 3, 200, 4), False, (1.5162538649, 1.5529684923, 5.743334, 5.552753)),
    ],
)
def test_numbers_of_arviz(case: tuple[float, int, int, int], rounded: bool, expected: tuple[float, ...]) -> None:
    """`az.rhat(x)`, `az.rhat(x, method="split")`, `az.ess(x)`, `az.ess(x, method="mean")`; rounded draws have
    ties."""
    x = ar1(*case)
    x = (x * 10).round() / 10 if rounded else x
    found = [rhat(x), plain_rhat(split(x)), ess(x), plain_ess(split(x))]
    assert [float(value) for value in found] == pytest.approx(expected, rel=1e-6, abs=2e-7)


@pytest.mark.parametrize("phi", [-0.3, 0.0, 0.5, 0.9])
def test_the_effective_size_of_an_autoregressive_chain(phi: float) -> None:
    """M N (1 - phi) / (1 + phi)."""
    x = ar1(phi, 8, 20000, 5)
    assert float(ess(x)) / (8 * 20000) == pytest.approx((1 - phi) / (1 + phi), rel=0.06)
    assert float(rhat(x)) == pytest.approx(1, abs=2e-3)


def test_chains_that_differ_in_place_or_width_are_told_apart() -> None:
    x = ar1(0.3, 4, 500, 6)
    shifted, wider = x.clone(), x.clone()
    shifted[0] += 1.0
    wider[0] *= 4
    assert float(rhat(x)) < 1.01
    assert float(rhat(shifted)) > 1.1
    assert float(rhat(wider)) > 1.1 > 1.01 > float(plain_rhat(split(wider)))
    drifting = ar1(0.3, 1, 500, 7) + torch.linspace(0, 2, 500)[None, :, None]
    assert float(rhat(drifting)) > 1.2, "the halves of one chain"
    assert float(ess(shifted)) < 0.1 * float(ess(x))
    means = torch.tensor([0.0, 2.0])[:, None, None] + ar1(0.0, 2, 10000, 8)
    # W = 1, B/N = 2, for the means 0 and 2 each twice: var = 4/3
    assert float(plain_rhat(split(means))) == pytest.approx(math.sqrt(1 + 4 / 3), rel=0.03)


def test_a_chain_that_is_not_a_number_disagrees_with_the_others() -> None:
    x = ar1(0.3, 4, 500, 11)
    x[2] = math.nan
    assert 1.1 < float(rhat(x)) < math.inf and float(ess(x)) < 0.1 * 2000


def test_quantities_are_apart_and_any_distribution_will_do() -> None:
    x = torch.cat([ar1(0.5, 3, 300, 9), ar1(0.9, 3, 300, 10)], 2)
    for function in (rhat, ess):
        torch.testing.assert_close(function(x), torch.cat([function(x[:, :, :1]), function(x[:, :, 1:])]))
    cauchy = torch.tan(torch.pi * (torch.special.ndtr(x) - 0.5))
    torch.testing.assert_close(ess(cauchy), ess(x))
    assert normal_scores(x).mean().abs() < 1e-9 and normal_scores(x).var() == pytest.approx(1, abs=0.01)
    assert rhat(torch.zeros(2, 10, 1)).isnan() and ess(torch.zeros(2, 10, 1)).isnan()
