"""Langevin correctors and chains at one level: the density that they draw from, what they report."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from flowdiff.denoisers.wrappers import Clipped, Guided
from flowdiff.errors import ConfigError
from flowdiff.samplers.base import Sampler, Step
from flowdiff.samplers.corrected import Mala, Ula
from flowdiff.samplers.mcmc import Mcmc
from flowdiff.samplers.noise import NoiseSource
from flowdiff.samplers.schedules import Karras, Schedule
from tests.helpers.analytic import GaussianDenoiser, MixtureDenoiser

N = 2000


@pytest.fixture
def mixture() -> MixtureDenoiser:
    means = torch.tensor([[-0.5, 0.2], [0.5, -0.2]], dtype=torch.float64)
    covariances = torch.diag_embed(torch.tensor([[0.02, 0.01], [0.01, 0.02]], dtype=torch.float64))
    return MixtureDenoiser(means, covariances, torch.tensor([0.3, 0.7], dtype=torch.float64))


def noise(n: int = N) -> NoiseSource:
    generator = torch.Generator().manual_seed(0)
    return lambda: torch.randn(n, 2, dtype=torch.float64, generator=generator)


def walked(
    sampler: Sampler,
    denoiser: Any,
    source: NoiseSource,
    schedule: Schedule,
    labels: Tensor | None = None,
    callback: Callable[[Step], None] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Samples, and what the walk to them has measured."""
    walk = sampler.walk()
    return walk(denoiser, source, sampler.sigmas(schedule), labels, callback), walk.records


def noised(sampler: Sampler, denoiser: Any, sigmas: Tensor, labels: Tensor | None = None) -> Tensor:
    """x at the last level above 0, of N samples."""
    seen: list[Tensor] = []

    def listen(step: Step) -> None:
        if step.sigma_next > 0:
            seen.append(step.x)

    sampler(denoiser, noise(), sigmas, labels, listen)
    return seen[-1]


def moments(log_prob: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and covariance of a density in the plane, up to a constant, by a sum over a grid."""
    line = torch.linspace(-4, 4, 400, dtype=torch.float64)
    points = torch.cartesian_prod(line, line)
    weights = log_prob(points).softmax(0)
    mean = weights @ points
    return mean, (points - mean).T @ ((points - mean) * weights[:, None])


@pytest.mark.parametrize("sampler", [Mala(20, n_corrector=4, step_size=0.9), Ula(20, n_corrector=4, step_size=0.9)])
def test_the_metropolis_test_takes_away_the_bias_of_large_steps(sampler: Ula, mixture: MixtureDenoiser) -> None:
    """At sigma = 0.2, where steps of 0.9 sigma^2 are most of the modes' variances."""
    x = noised(sampler, mixture, Karras(0.2, 80.0)(20))
    mean, covariance = moments(lambda x: mixture.log_prob(x, 0.2))
    wider = float(x[:, 1].var() / covariance[1, 1])
    if isinstance(sampler, Mala):
        torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.04)
        assert 0.92 < wider < 1.1
    else:
        assert wider > 1.25


@pytest.mark.parametrize("n_corrector", [1, 3])
@pytest.mark.parametrize("step_size", [None, 0.01, 10.0])
def test_step_sizes_follow_the_acceptance(n_corrector: int, step_size: float | None, mixture: MixtureDenoiser) -> None:
    sampler = Mala(80, n_corrector=n_corrector, step_size=step_size)
    _, records = walked(sampler, mixture, noise(), Karras(0.02, 80.0))
    report = sampler.report(records)
    assert abs(report["acceptance"] - 0.57) < 0.1
    by_sigma = {float(key): value for key, value in report["acceptance_by_sigma"].items()}
    assert list(by_sigma) == sorted(by_sigma, reverse=True) and len(by_sigma) == 8
    assert all(abs(value - 0.57) < 0.2 for value in list(by_sigma.values())[2:6])
    assert records["acceptance"].shape == (N, 79)


def test_guided_metropolis_steps_draw_from_the_guided_density(mixture: MixtureDenoiser) -> None:
    """log p_1 + (w - 1)(log p_1 - log p_null), which no noised data has: only its density can tell."""
    sigma, w, labels = 0.4, 2.5, torch.ones(N, dtype=torch.long)

    def guided(x: Tensor) -> Tensor:
        conditional = mixture.log_prob(x, sigma, torch.ones(len(x), dtype=torch.long))
        return conditional + (w - 1) * (conditional - mixture.log_prob(x, sigma))

    mean, covariance = moments(guided)
    sampler = Mcmc(sigma, 100, start="noise")
    x = noised(sampler, Guided(mixture, w), sampler.sigmas(Karras(0.002, 80.0)), labels)
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.03)
    torch.testing.assert_close(x.T.cov(), covariance, rtol=0.1, atol=0.01)
    plain, _ = moments(lambda x: mixture.log_prob(x, sigma, torch.ones(len(x), dtype=torch.long)))
    assert (mean - plain).norm() > 0.07, "or the test says nothing"


def test_a_clipped_score_changes_the_proposals_and_not_the_density(mixture: MixtureDenoiser) -> None:
    clipped = Clipped(mixture, -0.3, 0.3)
    sigma = torch.full((N,), 0.4, dtype=torch.float64)
    x = mixture.inverse(noise()(), 0.4)
    score, log_prob = clipped.score_and_log_prob(x, sigma)
    torch.testing.assert_close(x + 0.16 * score, clipped(x, sigma))
    assert torch.equal(log_prob, mixture.log_prob(x, 0.4))
    inside = (mixture(x, sigma).abs() < 0.3).all(1)
    assert 0.1 < inside.double().mean() < 0.9
    sampler = Mcmc(0.4, 100, start="noise")
    x = noised(sampler, clipped, sampler.sigmas(Karras(0.002, 80.0)))
    mean, covariance = moments(lambda x: mixture.log_prob(x, 0.4))
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.05)
    torch.testing.assert_close(x.T.cov(), covariance, rtol=0.1, atol=0.01)


@pytest.mark.parametrize("sampler", [Mala(30), Mcmc(0.3, 60)])
def test_a_density_that_breaks_is_not_entered(sampler: Sampler, mixture: MixtureDenoiser) -> None:
    class Broken(MixtureDenoiser):
        def log_prob(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
            return super().log_prob(x, sigma, labels).masked_fill(x[:, 1] > 0.25, math.nan)

    broken = Broken(mixture.means, mixture.covariances, mixture.weights)
    x, records = walked(sampler, broken, noise(200), Karras(0.02, 4.0))
    assert x.isfinite().all()
    assert 0.1 < sampler.report(records)["acceptance"] < 0.95


# -- chains at one level --------------------------------------------------------------------------------


def test_chains_from_noise_reach_the_density_and_say_so() -> None:
    mean = torch.tensor([0.3, -0.2], dtype=torch.float64)
    gaussian = GaussianDenoiser(mean, torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64))
    sampler = Mcmc(0.5, 300, start="noise")
    seen: list[Step] = []
    _, records = walked(sampler, gaussian, noise(), Karras(0.002, 80.0), callback=seen.append)
    x = seen[-2].x
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.06)
    torch.testing.assert_close(x.T.cov(), gaussian.covariance + 0.25 * torch.eye(2), rtol=0, atol=0.06)
    report = sampler.report(records)
    assert (report["chains"], report["draws"]) == (N, 150)
    assert abs(report["acceptance"] - 0.57) < 0.1
    assert 0.99 < report["rhat_median"] <= report["rhat_max"] < 1.1
    assert 0.05 < report["ess_min"] / (N * 150) <= report["ess_median"] / (N * 150) < 0.8
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_chains_of_a_class_are_compared_with_each_other(mixture: MixtureDenoiser) -> None:
    """At a low sigma no chain leaves its mode: two kinds of chains, unless each kind is a class."""
    labels = torch.arange(40) % 2
    sampler, found = Mcmc(0.02, 400), {}
    for name, given in (("class", labels), ("none", None)):
        found[name] = sampler.report(walked(sampler, mixture, noise(40), Karras(0.002, 80.0), given)[1])
    assert found["class"]["rhat_max"] < 1.1
    assert found["none"]["rhat_max"] > 1.3
    assert found["none"]["ess_min"] < 0.1 * found["class"]["ess_min"]


def test_the_step_size_adapts_in_the_warm_up_only(mixture: MixtureDenoiser) -> None:
    rates = {}
    for warmup in (0.0, 0.01, 0.5):
        sampler = Mcmc(0.3, 100, warmup=warmup, step_size=0.4)
        _, records = walked(sampler, mixture, noise(20), Karras(0.002, 80.0))
        rates[warmup] = records["rate"]
        assert records["draws"].shape == (20, 100 - int(100 * warmup), 3)
    torch.testing.assert_close(rates[0.0], torch.full((20,), 0.4, dtype=torch.float64))
    after = 0.4 * torch.tensor([1 - 0.57, -0.57], dtype=torch.float64).exp()
    assert torch.isclose(rates[0.01][:, None], after).any(1).all(), "one step, accepted or not"
    assert len(rates[0.5].unique()) > 5


@pytest.mark.parametrize("num_steps", [1, 2, 15])
def test_short_chains_report_what_they_can(num_steps: int, mixture: MixtureDenoiser) -> None:
    sampler = Mcmc(0.3, num_steps)
    sigmas = sampler.sigmas(Karras(0.002, 80.0))
    assert sigmas.tolist() == [0.3] * num_steps + [0.0]
    report = sampler.report(walked(sampler, mixture, noise(3), Karras(0.002, 80.0))[1])
    assert report["draws"] == num_steps - num_steps // 2
    assert ("rhat_max" in report) == (num_steps == 15)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mcmc(0.1, 5, start="data"), r"^start=data: must be one of inverse, noise"),
        (lambda: Mcmc(0.1, 5, warmup=1.0), r"^warmup=1\.0: "),
        (lambda: Mcmc(0.0, 5), r"^sigma_start=0\.0: "),
        (lambda: Mcmc(0.1, 0), r"^num_steps=0: "),
        (lambda: Mcmc(0.1, 5, step_size=0), r"^step_size=0: "),
        (lambda: Mcmc(0.1, 5).sigmas(Karras(0.2, 80.0)), r"^sigma_start=0\.1: must be at least sigma_min=0\.2"),
        (lambda: Mala(5, step_size=-1.0), r"^step_size=-1\.0: "),
        (lambda: Ula(5, n_corrector=0), r"^n_corrector=0: "),
        (lambda: Ula(5, eta=-1), r"^eta=-1: "),
    ],
)
def test_mistakes_are_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
