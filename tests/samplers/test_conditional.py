"""Inpainting and super-resolution against closed forms, and what is known stays known."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flowdiff.samplers.ancestral import Ancestral
from flowdiff.samplers.base import Sampler
from flowdiff.samplers.conditional import BlockMean, Conditioned, Known, Mask
from flowdiff.samplers.noise import IndexedNoise
from flowdiff.samplers.schedules import Karras
from tests.helpers.analytic import GaussianDenoiser, MixtureDenoiser
from tests.helpers.configs import build, choices

SCHEDULE = Karras(0.002, 6.0)
N = 2000


def density_of(denoiser: MixtureDenoiser) -> Callable[[Tensor, float], tuple[Tensor, Tensor]]:
    return lambda x, sigma: (denoiser.score(x, sigma), denoiser.log_prob(x, sigma))


def complete(
    denoiser: MixtureDenoiser, known: Known, x0: Tensor, n_corrector: int, sampler: Sampler
) -> tuple[Tensor, Conditioned]:
    generator = torch.Generator().manual_seed(0)
    noise = lambda: torch.randn(x0.shape, generator=generator, dtype=x0.dtype)  # noqa: E731
    correct = Conditioned(density_of(denoiser), noise, known, x0, n_corrector)
    x = sampler(denoiser, noise, sampler.sigmas(SCHEDULE), correct=correct)
    return known.replace(x, x0), correct


def row(*values: float) -> Tensor:
    """(N, 1, 1, d), the same in every row."""
    return torch.tensor(values, dtype=torch.float64).expand(N, 1, 1, len(values))


def masked(*missing: int) -> Mask:
    return Mask(torch.tensor(missing, dtype=torch.bool).expand(N, 1, 1, len(missing)))


def gaussian() -> GaussianDenoiser:
    mean = torch.tensor([0.2, -0.15, 0.1], dtype=torch.float64)
    covariance = torch.tensor([[0.5, 0.35, 0.1], [0.35, 0.4, 0.05], [0.1, 0.05, 0.3]], dtype=torch.float64)
    return GaussianDenoiser(mean, covariance, (1, 1, 3))


VALUES = {"num_steps": 50, "sigma_start": 3.0}
SAMPLERS = {name: build("sampler", name, **VALUES) for name in choices("sampler")}


@pytest.mark.parametrize(
    "name", [name for name, sampler in SAMPLERS.items() if len(sampler.sigmas(SCHEDULE).unique()) > 2]
)
def test_gaussian_given_two_coordinates(name: str) -> None:
    """x_2 | x_1, x_3 is N(0.600, 0.154); the mean of all x_2 is -0.15, their variance 0.4."""
    denoiser, x0 = gaussian(), row(1.2, 9.0, -0.4)
    mean, covariance = denoiser.mean, denoiser.covariance
    gain = covariance[1, [0, 2]] @ torch.linalg.inv(covariance[[0, 2]][:, [0, 2]])
    expected = float(mean[1] + gain @ (x0[0, 0, 0, [0, 2]] - mean[[0, 2]]))
    variance = float(covariance[1, 1] - gain @ covariance[[0, 2], 1])
    assert (expected, variance) == pytest.approx((0.6, 0.1536), abs=1e-4)

    x, correct = complete(denoiser, masked(0, 1, 0), x0, 4, SAMPLERS[name])
    assert float(x[..., 1].mean()) == pytest.approx(expected, abs=0.04)
    assert float(x[..., 1].var()) == pytest.approx(variance, rel=0.12)
    assert torch.equal(x[..., [0, 2]], x0[..., [0, 2]])
    assert 0.5 < float(torch.stack(correct.acceptance).mean()) < 0.9

    if name in ("ancestral", "heun"):
        alone, _ = complete(denoiser, masked(0, 1, 0), x0, 0, SAMPLERS[name])
        assert float(alone[..., 1].mean()) < expected - 0.2, "replacement alone is biased: the correction is needed"


def test_gaussian_given_a_mean_of_two() -> None:
    """Super-resolution of an image of two pixels: their difference given their mean."""
    covariance = torch.tensor([[0.5, 0.1, 0, 0], [0.1, 0.2, 0, 0], [0, 0, 0.3, 0], [0, 0, 0, 0.3]], dtype=torch.float64)
    mean = torch.tensor([0.3, -0.2, 0.1, 0.0], dtype=torch.float64)
    denoiser = GaussianDenoiser(mean, covariance, (1, 2, 2))
    x0 = torch.full((N, 1, 2, 2), 0.4, dtype=torch.float64)
    average = torch.full((4,), 0.25, dtype=torch.float64)
    gain = covariance @ average / (average @ covariance @ average)
    expected = mean + gain * (0.4 - average @ mean)
    conditional = covariance - torch.outer(gain, average @ covariance)

    x, _ = complete(denoiser, BlockMean(2), x0, 4, Ancestral(50))
    torch.testing.assert_close(x.mean((1, 2, 3)), x0.mean((1, 2, 3)))
    torch.testing.assert_close(x.flatten(1).mean(0), expected, rtol=0, atol=0.04)
    torch.testing.assert_close(x.flatten(1).T.cov(), conditional, rtol=0, atol=0.03)

    alone, _ = complete(denoiser, BlockMean(2), x0, 0, Ancestral(50))
    assert (alone.flatten(1).mean(0) - expected).abs().max() > 0.08


@pytest.mark.parametrize("given", [-0.5, 0.0, 0.4])
def test_weights_of_modes_given_a_coordinate(given: float) -> None:
    means = torch.tensor([[-0.6, 0.6], [0.6, -0.3]], dtype=torch.float64)
    variances = torch.tensor([[0.3, 0.05], [0.2, 0.05]], dtype=torch.float64)
    weights = torch.tensor([0.4, 0.6], dtype=torch.float64)
    denoiser = MixtureDenoiser(means, torch.diag_embed(variances), weights, (1, 1, 2))
    fit = weights.log() - 0.5 * (given - means[:, 0]) ** 2 / variances[:, 0] - 0.5 * variances[:, 0].log()
    expected = float(fit.softmax(0)[0])  # 0.917, 0.424, 0.102

    def share(n_corrector: int) -> float:
        x, _ = complete(denoiser, masked(0, 1), row(given, 0.0), n_corrector, Ancestral(100))
        return float((x[..., 1] > 0.15).double().mean())

    assert share(4) == pytest.approx(expected, abs=0.035)
    if given:
        assert abs(share(0) - expected) > 0.08, "replacement alone is biased: the correction is needed"


@pytest.mark.parametrize("known", [Mask(torch.rand(5, 2, 4, 6) > 0.5), BlockMean(2)], ids=["mask", "block_mean"])
def test_projectors(known: Known) -> None:
    x, y = torch.randn(2, 5, 2, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(known.project(known.project(x)), known.project(x))
    torch.testing.assert_close((known.project(x) * y).sum(), (x * known.project(y)).sum())
    torch.testing.assert_close(known.rest(x) + known.project(x), x)
    torch.testing.assert_close(known.project(known.replace(x, y)), known.project(y))
    torch.testing.assert_close(known.rest(known.replace(x, y)), known.rest(x))
    basis = torch.eye(48, dtype=torch.float64).view(48, 2, 4, 6)
    for i, free in enumerate(known.free(x).tolist()):
        images = known[torch.full((48,), i)].rest(basis).flatten(1)
        assert float(images.trace()) == pytest.approx(free)


def test_every_step_moves_in_the_unknown_part_alone() -> None:
    denoiser, known, x0 = gaussian(), masked(0, 1, 0), row(1.2, 0.0, -0.4)
    quiet = lambda: torch.zeros_like(x0)  # noqa: E731
    x = Conditioned(density_of(denoiser), quiet, known, x0, 3)(torch.full_like(x0, 7.0), 0.5)
    assert torch.equal(x[..., [0, 2]], x0[..., [0, 2]])
    assert (x[..., 1] < 7).all(), "without noise the steps climb to the mean"


def test_a_step_that_is_not_finite_is_not_taken() -> None:
    denoiser, known, x0 = gaussian(), masked(0, 1, 0), row(1.2, 0.0, -0.4)

    def broken(x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        score, log_prob = density_of(denoiser)(x, sigma)
        return score, torch.where(x[:, 0, 0, 1] > 0.5, torch.nan, log_prob)

    noise = IndexedNoise(range(N), (1, 1, 3), dtype=torch.float64)
    x = Conditioned(broken, noise, known, x0, 20)(x0, 0.5)
    assert x[..., 1].max() <= 0.5 and float(x[..., 1].std()) > 0.1


def test_a_sample_does_not_depend_on_its_batch() -> None:
    denoiser, sampler = gaussian(), Ancestral(20)
    missing = torch.rand(6, 1, 1, 3, generator=torch.Generator().manual_seed(0)) > 0.5
    missing[:, ..., 0] = True
    x0 = torch.randn(6, 1, 1, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def draw(size: int) -> Tensor:
        parts = []
        for rows in torch.arange(6).split(size):
            noise = IndexedNoise(rows.tolist(), (1, 1, 3), dtype=torch.float64)
            correct = Conditioned(density_of(denoiser), noise, Mask(missing)[rows], x0[rows], 3)
            parts.append(sampler(denoiser, noise, sampler.sigmas(SCHEDULE), correct=correct))
        return torch.cat(parts)

    whole = draw(6)
    torch.testing.assert_close(draw(1), whole)
    torch.testing.assert_close(draw(4), whole)
