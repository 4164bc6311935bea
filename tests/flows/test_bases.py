"""Base distributions: every choice of conf/base is the normalised density of its samples; the mixture is torch's."""

import dataclasses
import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from flowdiff.data.statistics import DataStatistics
from flowdiff.denoisers.score_flow import ScoreFlow
from flowdiff.flows.bases import ClassMixture, pick, put_back
from tests.helpers.configs import choices
from tests.helpers.models import make, randomise

CLASSES = 2
BASES = choices("base")


def data(d: int) -> DataStatistics:
    """Moments, with a sample, of two classes of three clusters each, (400, d)."""
    generator = torch.Generator().manual_seed(d)
    labels = torch.arange(400) % CLASSES
    centres = torch.randn(CLASSES, 3, d, generator=generator)
    spread = 0.2 * torch.randn(CLASSES, 3, d, d, generator=generator)
    part = torch.randint(3, (400,), generator=generator)
    x = centres[labels, part] + (spread[labels, part] @ torch.randn(400, d, 1, generator=generator)).squeeze(2)
    return DataStatistics.from_data(x, labels, CLASSES)


def model(base: str, d: int, precondition: str = "standardized", **values: float) -> ScoreFlow:
    overrides = {f"base.{key}": value for key, value in values.items()}
    made = make((d,), CLASSES, overrides, base=base, precondition=precondition).double()
    assert isinstance(made, ScoreFlow)
    statistics = data(d)
    assert statistics.eigenvectors is not None  # in float32, which is not orthonormal in float64
    made.fit(dataclasses.replace(statistics, eigenvectors=torch.linalg.qr(statistics.eigenvectors.double()).Q))
    return made.double().eval()


def mixture(d: int, **values: float) -> ScoreFlow:
    """Nothing but the mixture: its share is 1 where σ is far above 1e-3."""
    return model("mixture", d, components=3, mixture_above=1e-3, **values)


@pytest.mark.parametrize("d", [2, 5])
@pytest.mark.parametrize("leading", [64, 1])
def test_the_mixture_is_that_of_torch(d: int, leading: int) -> None:
    made = mixture(d, leading=leading)
    base = made.base
    assert isinstance(base, ClassMixture)
    x, sigma = torch.randn(7, d, dtype=torch.float64), torch.linspace(0.05, 3, 7, dtype=torch.float64)
    for c in range(CLASSES + 1):
        for i in range(7):
            covariance = made.precondition.eigenvectors.new_zeros(3, d, d)
            r = base.leading
            covariance[:, :r, :r] = base.rotations[c] @ base.variances[c].diag_embed() @ base.rotations[c].mT
            covariance[:, r:, r:] = base.trailing[c].diag()
            mean = torch.zeros(3, d, dtype=torch.float64)
            mean[:, :r] = (base.rotations[c] @ base.means[c][..., None]).squeeze(2)
            covariance = made.precondition.eigenvectors @ covariance @ made.precondition.eigenvectors.T + sigma[
                i
            ] ** 2 * torch.eye(d, dtype=torch.float64)
            parts = MultivariateNormal(
                made.precondition.class_means[c] + mean @ made.precondition.eigenvectors.T, covariance
            )
            theirs = MixtureSameFamily(Categorical(logits=base.log_shares[c]), parts).log_prob(x[i : i + 1])
            labels = torch.tensor([c]) if c < CLASSES else None
            ours = made.log_prob(x[i : i + 1], sigma[i : i + 1], labels)
            assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("sigma", [0.05, 0.4, 2.0])
def test_a_density_integrates_to_one(base: str, sigma: float) -> None:
    made = model(base, 2)
    axis = torch.linspace(-4 - 8 * sigma, 4 + 8 * sigma, 401, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        total = made.log_prob(x, sigma, torch.zeros(len(x), dtype=torch.long)).exp().sum() * (axis[1] - axis[0]) ** 2
    assert total.item() == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("base", BASES)
def test_latents_and_samples_are_each_other_s(base: str) -> None:
    made = model(base, 5)
    n, labels = torch.randn(200, 5, dtype=torch.float64), torch.arange(200) % CLASSES
    sigma = torch.linspace(-3, 3, 200, dtype=torch.float64).exp()
    x = made.inverse(n, sigma, labels)
    torch.testing.assert_close(made.inverse(made.latent(x, sigma, labels), sigma, labels), x, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("sigma", [0.05, 0.4, 2.0])
def test_the_density_is_that_of_the_samples(base: str, sigma: float) -> None:
    """Means over samples are integrals of the density on a grid, also between the branches of the quantile."""
    made = model(base, 2)
    n = torch.randn(200_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    classes = torch.zeros(len(n), dtype=torch.long)
    drawn = made.base.from_normal(n, torch.full((len(n),), sigma, dtype=torch.float64), classes, made.precondition)
    axis = torch.linspace(-9, 9, 721, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    level, rows = torch.full((len(grid),), sigma, dtype=torch.float64), torch.zeros(len(grid), dtype=torch.long)
    q = made.base.log_prob(grid, level, rows, made.precondition).exp() * (axis[1] - axis[0]) ** 2
    for frequency in torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, -1.0]], dtype=torch.float64):
        by_samples, by_grid = (drawn @ frequency).cos().mean(), (q * (grid @ frequency).cos()).sum()
        assert by_samples.item() == pytest.approx(by_grid.item(), abs=5 / math.sqrt(len(n)))


def test_quantiles_are_put_back() -> None:
    shares = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64).expand(999, 3)
    quantile = (torch.arange(999, dtype=torch.float64) + 0.5) / 999
    index, inner = pick(quantile, shares)
    torch.testing.assert_close(index.bincount().double() / 999, shares[0], atol=2e-3, rtol=0)
    torch.testing.assert_close(put_back(quantile=inner, index=index, shares=shares), quantile)


def test_data_without_an_eigensystem_have_a_standard_normal_base() -> None:
    plain = dataclasses.replace(data(5), eigenvectors=None)
    x, sigma = torch.randn(4, 5), torch.tensor([0.1, 0.4, 1.0, 9.0])
    values = []
    for base in ("mixture", "normal"):
        made = make((5,), CLASSES, base=base)
        assert isinstance(made, ScoreFlow)
        made.precondition.eigenvectors = torch.empty(0, 0)
        made.fit(plain)
        values.append((made.log_prob(x, sigma), made.inverse(x, sigma), made.latent(x, sigma)))
    torch.testing.assert_close(*values)


def test_a_class_without_images_has_everybody_s_gaussians() -> None:
    statistics = DataStatistics.from_data(torch.randn(50, 4), torch.zeros(50, dtype=torch.long), 2)
    base = ClassMixture(4, 2, components=2)
    base.fit(statistics)
    torch.testing.assert_close(base.rotations[1], base.rotations[2])
    assert all(buffer.isfinite().all() for buffer in base.buffers())


def test_few_images_still_make_a_density() -> None:
    statistics = DataStatistics.from_data(torch.randn(6, 4), torch.arange(6) % 2, 2)
    base = ClassMixture(4, 2, components=5)
    base.fit(statistics)
    torch.testing.assert_close(base.log_shares.exp().sum(1), torch.ones(3))


@pytest.mark.parametrize("base", BASES)
def test_derivatives_are_finite_at_every_noise_level(base: str) -> None:
    made = make((1, 4, 4), CLASSES, {}, base=base, precondition="gaussianised")
    assert isinstance(made, ScoreFlow)
    made.fit(data(16))
    randomise(made)
    sigma = torch.logspace(-3, 2, 60)
    x = 0.5 * torch.randn(60, 1, 4, 4) + sigma.view(-1, 1, 1, 1) * torch.randn(60, 1, 4, 4)
    score, log_prob = made.score_and_log_prob(x, sigma, torch.arange(60) % CLASSES)
    (score.square().sum() + log_prob.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())


@pytest.mark.parametrize("base", BASES)
def test_second_derivatives(base: str) -> None:
    made = model(base, 4)
    randomise(made)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    sigma, labels = torch.tensor([0.2, 0.42, 1.5], dtype=torch.float64), torch.tensor([0, 1, 1])
    assert torch.autograd.gradgradcheck(lambda given: made.log_prob(given, sigma, labels).sum(), (x,))
