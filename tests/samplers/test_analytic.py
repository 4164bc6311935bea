"""With an exact denoiser every sampler draws from the data's distribution, and on every schedule."""

import functools
import itertools

import pytest
import torch
from torch import Tensor

from flowdiff.samplers.inversion import InversionDenoise
from flowdiff.samplers.schedules import Karras
from tests.helpers.analytic import GaussianDenoiser, MixtureDenoiser
from tests.helpers.configs import build, choices

ALL = [(sampler, schedule) for sampler in choices("sampler") for schedule in choices("schedule")]
CASES = [(sampler, schedule) for sampler, schedule in ALL if schedule == "karras" or sampler in ("euler", "ancestral")]
VALUES = {"num_steps": 300, "sigma_start": 0.02, "sigma_min": 0.002, "sigma_max": 6.0}
N = 3000


def normals(n: int, seed: int = 0):
    """A noise source of antithetic pairs: the mean of every draw is exactly 0."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        half = torch.randn(n // 2, 2, dtype=torch.float64, generator=generator)
        return torch.cat([half, -half])

    return draw


@functools.cache
def gaussian() -> GaussianDenoiser:
    mean = torch.tensor([0.2, -0.15], dtype=torch.float64)
    return GaussianDenoiser(mean, torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64))


@functools.cache
def mixture() -> MixtureDenoiser:
    means = torch.tensor([[-1.0, 0.5], [0.8, 0.4], [-2 / 3, -1.0]], dtype=torch.float64)
    variances = torch.tensor([[0.06, 0.04], [0.05, 0.06], [0.04, 0.07]], dtype=torch.float64)
    return MixtureDenoiser(means, torch.diag_embed(variances), torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64))


def draw(sampler: str, schedule: str, denoiser: MixtureDenoiser, labels: Tensor | None = None) -> Tensor:
    built = build("sampler", sampler, **VALUES)
    return built(denoiser, normals(N), built.sigmas(build("schedule", schedule, **VALUES)), labels)


@pytest.mark.parametrize(("sampler", "schedule"), CASES)
def test_gaussian(sampler: str, schedule: str) -> None:
    x = draw(sampler, schedule, gaussian())
    torch.testing.assert_close(x.mean(0), gaussian().mean, rtol=0, atol=0.03)
    torch.testing.assert_close(x.T.cov(), gaussian().covariance, rtol=0, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "schedule"), CASES)
def test_mixture(sampler: str, schedule: str) -> None:
    x = draw(sampler, schedule, mixture())
    component = torch.cdist(x, mixture().means).argmin(1)
    weights = component.bincount(minlength=3) / N
    torch.testing.assert_close(weights, mixture().weights.float(), rtol=0, atol=0.035)
    for k in range(3):
        members = x[component == k]
        torch.testing.assert_close(members.mean(0), mixture().means[k], rtol=0, atol=0.04)
        torch.testing.assert_close(members.T.cov(), mixture().covariances[k], rtol=0, atol=0.015)
    residual = x - mixture().means[component]
    within = torch.einsum("k,kde->de", mixture().weights, mixture().covariances)
    torch.testing.assert_close(residual.T @ residual / N, within, rtol=0, atol=0.006)


@pytest.mark.parametrize("sampler", choices("sampler"))
def test_labels_reach_the_denoiser(sampler: str) -> None:
    labels = torch.arange(N) % 3
    built = build("sampler", sampler, **(VALUES | {"num_steps": 100}))
    x = built(mixture(), normals(N), built.sigmas(build("schedule", "karras", **VALUES)), labels)
    assert (torch.cdist(x, mixture().means).argmin(1) == labels).float().mean() > 0.995


@pytest.mark.parametrize(("sampler", "schedule"), ALL)
def test_few_steps_are_finite(sampler: str, schedule: str) -> None:
    for num_steps, dtype in itertools.product((1, 2, 3, 50), (torch.float32, torch.float64)):
        values = {"num_steps": num_steps, "sigma_start": 0.3, "sigma_min": 0.002, "sigma_max": 80.0}
        built = build("sampler", sampler, **values)
        noise = normals(16)
        x = built(mixture(), lambda: noise().to(dtype), built.sigmas(build("schedule", schedule, **values)))  # noqa: B023
        assert x.shape == (16, 2)
        assert x.dtype == dtype
        assert x.isfinite().all()
        assert x.abs().max() < 3 * 80


@pytest.mark.parametrize("sigma_start", [0.02, 0.5, 5.0])
def test_inversion_denoise_is_exact_from_any_start(sigma_start: float) -> None:
    sampler = InversionDenoise(sigma_start, num_steps=60)
    x = sampler(gaussian(), normals(N), sampler.sigmas(Karras(0.002, 80.0)))
    torch.testing.assert_close(x.mean(0), gaussian().mean, rtol=0, atol=1e-3)
    torch.testing.assert_close(x.T.cov(), gaussian().covariance, rtol=0, atol=0.03)


def test_inversion_of_a_gaussian_is_its_closed_form() -> None:
    sampler = build("sampler", "inversion", sigma_start=0.7)
    z = normals(N)()
    eigenvalues, basis = torch.linalg.eigh(gaussian().covariance)
    at_start = gaussian().mean + (z @ basis * (eigenvalues + 0.7**2).sqrt()) @ basis.T
    shrunk = gaussian().mean + ((at_start - gaussian().mean) @ basis * (eigenvalues / (eigenvalues + 0.49))) @ basis.T
    x = sampler(gaussian(), lambda: z, sampler.sigmas(Karras(0.002, 80.0)))
    torch.testing.assert_close(x, shrunk)


def test_the_analytic_truth_itself() -> None:
    """The closed forms against autograd, and the inverse against the density's moments."""
    x = normals(64)().requires_grad_()
    sigma = torch.linspace(0.05, 3.0, 64, dtype=torch.float64)
    for labels in (None, torch.arange(64) % 3):
        (gradient,) = torch.autograd.grad(mixture().log_prob(x, sigma, labels).sum(), x)
        torch.testing.assert_close(mixture().score(x, sigma, labels), gradient)
    drawn = mixture().inverse(normals(N)(), 0.5)
    components = mixture()
    mean = components.weights @ components.means
    spread = components.means - mean
    second = torch.einsum("k,kd,ke->de", components.weights, spread, spread)
    covariance = second + torch.einsum("k,kde->de", components.weights, components.covariances)
    torch.testing.assert_close(drawn.mean(0), mean, rtol=0, atol=0.05)
    torch.testing.assert_close(drawn.T.cov(), covariance + 0.25 * torch.eye(2), rtol=0, atol=0.06)
