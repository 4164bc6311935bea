"""Implied bits against closed forms: divergences and densities of mixtures, whose denoisers are exact."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from flowdiff.data.digits import Digits
from flowdiff.data.statistics import DataStatistics
from flowdiff.data.toy import Toy
from flowdiff.errors import ConfigError
from flowdiff.metrics.base import Evaluand, Result, measure
from flowdiff.metrics.implied import ImpliedBits, excess, integrate
from flowdiff.metrics.likelihood import BitsPerDim, NLLBySigma
from tests.helpers.analytic import GaussianDenoiser, MixtureDenoiser
from tests.helpers.models import make, randomise

DATA = Digits()
STATISTICS = DATA.statistics(10)


def of_classes(spread: float = 1.0, num_classes: int = 10) -> MixtureDenoiser:
    """A Gaussian for each digit, its variances around the class's mean `spread` times those of all digits."""
    assert STATISTICS.eigenvectors is not None
    basis = STATISTICS.eigenvectors.double()
    covariance = basis * (spread * STATISTICS.eigenvalues.double()) @ basis.T
    found = MixtureDenoiser(
        STATISTICS.class_means[:10].double(), covariance.repeat(10, 1, 1), torch.full((10,), 0.1), (1, 8, 8)
    )
    found.num_classes = num_classes
    return found


def bits(denoiser: object, statistics: DataStatistics = STATISTICS, **settings: int) -> tuple[Result, Result]:
    """The implied bits and the exact ones, of the same 360 images."""
    model = Evaluand(denoiser, DATA, statistics, batch_size=200)
    results, skipped = measure({"i": ImpliedBits(num_images=None, **settings), "b": BitsPerDim()}, model)
    assert skipped == {}
    return results["implied_bits"], results["bits_per_dim"]


def allowed(implied: Result) -> float:
    """What its own errors allow."""
    return implied.conditions["quadrature_error"] + 4 * implied.conditions["noise_error"]


def test_the_integral_is_the_divergence_of_two_mixtures() -> None:
    """∫ (mse_Q − mmse)/τ³ dτ = KL(P|Q), on a grid of x that P weighs."""
    means = torch.tensor([[-1.0, 0.5], [1.0, 0.0], [0.2, -1.5]]).double()
    covariances = torch.diag_embed(torch.tensor([[0.3, 0.1], [0.05, 0.4], [0.2, 0.2]])).double()
    truth = MixtureDenoiser(means, covariances, torch.tensor([0.5, 0.3, 0.2]).double())
    other = MixtureDenoiser(means + 0.4, 1.5 * covariances.flip(0), torch.tensor([0.2, 0.2, 0.6]).double())
    sigma, step, axis = 0.1, 0.06, torch.arange(-4, 4, 0.06).double()
    x = torch.cartesian_prod(axis, axis)
    x = x[truth.log_prob(x, sigma) > -20]
    log_p, log_q = truth.log_prob(x, sigma), other.log_prob(x, sigma)
    weights = log_p.exp() * step**2
    divergence = (weights * (log_p - log_q)).sum().item()
    assert weights.sum().item() == pytest.approx(1, abs=1e-4) and divergence > 0.9

    truth.num_classes = other.num_classes = 0
    data, statistics = Toy(num_train=10, num_test=10), DataStatistics.from_data(means, None, 0)
    taus = torch.linspace(math.log(sigma / 4), math.log(80), 61).double().exp()
    mmse, mse = (
        (weights @ excess(Evaluand(each, data, statistics), x, torch.zeros(len(x)), sigma, taus))
        for each in (truth, other)
    )
    assert (mse > mmse).all()
    assert integrate(mse - mmse, math.log(4 * 80 / sigma) / 60).item() == pytest.approx(divergence, rel=0.01)


@pytest.mark.parametrize("num_levels", [41, 21])
@pytest.mark.parametrize("num_classes", [10, 0])
@pytest.mark.parametrize("spread", [0.3, 4.0])
def test_a_density_that_is_one_diffusion_has_its_exact_bits(spread: float, num_classes: int, num_levels: int) -> None:
    implied, exact = bits(of_classes(spread, num_classes), num_levels=num_levels)
    assert abs(implied.value - exact.value) < allowed(implied) < 0.03
    assert abs(implied.value - implied.conditions["gaussian"]) > 0.1
    assert implied.n == exact.n == 360 and implied.conditions["sigma"] == exact.conditions["sigma"] == 0.002


def test_noised_data_have_their_exact_likelihood() -> None:
    model = Evaluand(of_classes(0.3), DATA, STATISTICS)
    implied_bits = ImpliedBits(sigmas=[0.05, 1])
    assert implied_bits.keys(model) == ["implied_bits", "implied_nll/0.05", "implied_nll/1"]
    results, _ = measure({"i": implied_bits, "n": NLLBySigma([0.05, 1])}, model)
    for sigma in ("0.05", "1"):
        implied, exact = results[f"implied_nll/{sigma}"], results[f"nll_by_sigma/{sigma}"]
        assert abs(implied.value - exact.value) < allowed(implied) < 0.01
        assert implied.conditions["standard_error"] == pytest.approx(exact.conditions["standard_error"], rel=0.1)
        assert abs(implied.value - implied.conditions["gaussian"]) > allowed(implied)
        assert implied.n == 360 and implied.quantity.unit == "nats/dim"


def test_too_few_levels_say_so() -> None:
    implied, exact = bits(of_classes(0.3), num_levels=5)
    assert 0.1 < abs(implied.value - exact.value) < implied.conditions["quadrature_error"]


def test_the_filter_has_the_bits_of_its_gaussian() -> None:
    class Wiener(GaussianDenoiser):
        def __init__(self) -> None:
            self.num_classes = 10

        def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:  # type: ignore[override]
            return STATISTICS.wiener(x, sigma, labels)

        def log_prob(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
            return of_classes().log_prob(x.double(), sigma, labels)

    implied, exact = bits(Wiener())
    assert implied.value == implied.conditions["gaussian"] == pytest.approx(exact.value, abs=1e-4)
    assert implied.conditions["quadrature_error"] == implied.conditions["tails"] == 0


def test_the_gaussian_compared_with_does_not_matter() -> None:
    found = [
        bits(of_classes(), dataclasses.replace(STATISTICS, eigenvalues=share * STATISTICS.eigenvalues + 1e-3))[0]
        for share in (1.0, 0.3)
    ]
    assert found[0].conditions["gaussian"] < found[1].conditions["gaussian"] - 0.2
    assert abs(found[0].value - found[1].value) < allowed(found[0]) + allowed(found[1])


def test_densities_that_are_no_diffusion_are_told_from_their_denoiser() -> None:
    """A family whose σ is taken for 2 σ: its density at sigma_min is good, its scores are not."""

    class WrongSpread(MixtureDenoiser):
        def score(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
            return super().score(x, sigma * 2, labels)

    right = of_classes()
    wrong = WrongSpread(right.means, right.covariances, right.weights, right.shape)
    implied, exact = bits(wrong)
    assert implied.value > exact.value + 0.1 + allowed(implied)


def test_a_free_network_has_implied_bits_alone() -> None:
    model = make((1, 8, 8), 10, denoiser="mlp").eval()
    model.fit(STATISTICS)
    randomise(model)
    metrics = {"i": ImpliedBits(num_levels=9, num_images=20), "b": BitsPerDim()}
    results, skipped = measure(metrics, Evaluand(model, DATA, STATISTICS))
    assert list(results) == ["implied_bits"] and list(skipped) == ["b"]
    assert math.isfinite(results["implied_bits"].value) and results["implied_bits"].n == 20


def test_where_it_does_not_fit() -> None:
    toy = Evaluand(of_classes(), Toy(num_train=10, num_test=10))
    assert ImpliedBits().unfit(toy) == "points have no levels"
    assert ImpliedBits().unfit(Evaluand(of_classes(), DATA)) == "no statistics of the training split"
    with pytest.raises(ConfigError, match=r"sigma_max=0\.001: must be above the noise level of the density, 0\.002"):
        ImpliedBits(sigma_max=0.001)(Evaluand(of_classes(), DATA, STATISTICS))
