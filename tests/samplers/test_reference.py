"""The same numbers as k-diffusion's functions and EDM's sampler, on the same denoiser and the same noise."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from flowdiff.samplers.ancestral import Ancestral, Ddim, ancestral_step
from flowdiff.samplers.base import Sampler
from flowdiff.samplers.dpmpp_sde import DpmppSde
from flowdiff.samplers.multistep import Dpmpp2m, Dpmpp2mSde, Lms, adams_bashforth
from flowdiff.samplers.ode import Euler, Heun, HeunStochastic
from flowdiff.samplers.schedules import Geometric, Karras, Polyexponential, Vp
from tests.helpers.analytic import MixtureDenoiser
from tests.helpers.k_diffusion_sampling import sampling

STEPS = 12


@pytest.fixture
def denoiser() -> MixtureDenoiser:
    means = torch.tensor([[-0.6, 0.3], [0.5, 0.1], [0.0, -0.7]], dtype=torch.float64)
    covariances = torch.tensor([[0.04, 0.01], [0.01, 0.02]], dtype=torch.float64).expand(3, 2, 2)
    return MixtureDenoiser(means, covariances, torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64))


@pytest.fixture
def draws() -> Tensor:
    """The standard normals of one run, in the order they are drawn: (2 STEPS + 1, n, 2)."""
    return torch.randn(2 * STEPS + 1, 64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def feed(draws: Tensor) -> Iterator[Tensor]:
    return iter(draws.unbind())


@pytest.mark.parametrize("num_steps", [2, 3, 50])
def test_karras_schedule(num_steps: int) -> None:
    theirs = sampling.get_sigmas_karras(num_steps, 0.002, 80.0, rho=7.0)
    torch.testing.assert_close(Karras(0.002, 80.0)(num_steps).float(), theirs, rtol=1e-5, atol=1e-5)


def test_geometric_schedule() -> None:
    theirs = sampling.get_sigmas_exponential(20, 0.002, 80.0)
    torch.testing.assert_close(Geometric(0.002, 80.0)(20).float(), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rho", [0.5, 1.0, 3.0])
def test_polyexponential_schedule(rho: float) -> None:
    theirs = sampling.get_sigmas_polyexponential(20, 0.002, 80.0, rho=rho)
    torch.testing.assert_close(Polyexponential(0.002, 80.0, rho)(20).float(), theirs, rtol=1e-5, atol=1e-5)


def test_vp_schedule() -> None:
    """Between the ends that k-diffusion's own range of t has; theirs is in float32."""
    theirs = sampling.get_sigmas_vp(20)
    ours = Vp(float(theirs[-2]), float(theirs[0]))(20)
    torch.testing.assert_close(ours.float(), theirs, rtol=1e-4, atol=1e-5)
    t = torch.linspace(1, 1e-3, 20, dtype=torch.float64)
    exact = (19.9 * t**2 / 2 + 0.1 * t).expm1().sqrt()
    torch.testing.assert_close(Vp(float(exact[-1]), float(exact[0]))(20)[:-1], exact, rtol=1e-9, atol=0)


ODE = [
    (Euler(STEPS), sampling.sample_euler),
    (Heun(STEPS), sampling.sample_heun),
    (Ddim(STEPS), sampling.sample_euler),
    (Dpmpp2m(STEPS), sampling.sample_dpmpp_2m),
    (Dpmpp2mSde(STEPS, eta=0.0), sampling.sample_dpmpp_2m),
    (Lms(STEPS), sampling.sample_lms),
    (Lms(STEPS, order=1), sampling.sample_euler),
]


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize(("ours", "theirs"), ODE, ids=lambda case: getattr(case, "name", ""))
def test_ode(denoiser: MixtureDenoiser, draws: Tensor, ours: Sampler, theirs, labelled: bool) -> None:
    sigmas = Karras(0.002, 80.0)(STEPS)
    labels = torch.arange(64) % 3 if labelled else None
    expected = theirs(denoiser, sigmas[0] * draws[0], sigmas, extra_args={"labels": labels}, disable=True)
    actual = ours(denoiser, feed(draws).__next__, sigmas, labels)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("churn", [{"s_churn": 3.0}, {"s_churn": 100.0, "s_noise": 1.007}])
def test_heun_with_churn(
    denoiser: MixtureDenoiser, draws: Tensor, churn: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    sigmas = Karras(0.002, 80.0)(STEPS)
    noise = feed(draws)
    x = sigmas[0] * next(noise)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn_like", lambda like: next(noise))
        expected = sampling.sample_heun(denoiser, x, sigmas, disable=True, **churn)
    actual = Heun(STEPS, **churn)(denoiser, feed(draws).__next__, sigmas)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    without = Heun(STEPS)(denoiser, feed(draws).__next__, sigmas)
    assert (actual - without).abs().max() > 0.01


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 1.5])
def test_ancestral(denoiser: MixtureDenoiser, draws: Tensor, eta: float) -> None:
    sigmas = Karras(0.002, 80.0)(STEPS)
    noise = feed(draws)
    expected = sampling.sample_euler_ancestral(
        denoiser,
        sigmas[0] * next(noise),
        sigmas,
        eta=eta,
        noise_sampler=lambda s, t: next(noise),
        disable=True,
    )
    actual = Ancestral(STEPS, eta)(denoiser, feed(draws).__next__, sigmas)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


SDE = [(Dpmpp2mSde, sampling.sample_dpmpp_2m_sde), (DpmppSde, sampling.sample_dpmpp_sde)]


@pytest.mark.parametrize(("ours", "theirs"), SDE)
@pytest.mark.parametrize("settings", [{}, {"eta": 0.5}, {"eta": 0.0}, {"s_noise": 1.1}])
@pytest.mark.parametrize("schedule", [Karras(0.002, 80.0), Geometric(0.01, 20.0)])
def test_sde(denoiser: MixtureDenoiser, draws: Tensor, ours, theirs, settings: dict[str, float], schedule) -> None:
    sigmas, noise = schedule(STEPS), feed(draws)
    sampler = lambda sigma, to: next(noise)  # noqa: E731
    expected = theirs(denoiser, sigmas[0] * next(noise), sigmas, noise_sampler=sampler, disable=True, **settings)
    actual = ours(STEPS, **settings)(denoiser, feed(draws).__next__, sigmas)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("r", [0.3, 1.0])
def test_dpmpp_sde_with_another_point_between(denoiser: MixtureDenoiser, draws: Tensor, r: float) -> None:
    sigmas, noise = Karras(0.002, 80.0)(STEPS), feed(draws)
    expected = sampling.sample_dpmpp_sde(
        denoiser, sigmas[0] * next(noise), sigmas, noise_sampler=lambda s, t: next(noise), disable=True, r=r
    )
    actual = DpmppSde(STEPS, r=r)(denoiser, feed(draws).__next__, sigmas)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 6])
def test_adams_bashforth_integrates_polynomials_of_its_order(order: int) -> None:
    levels = [5.0, 3.0, 2.5, 1.0, 0.4, 0.3][-order:]
    for power in range(order):
        integral = sum(w * s**power for w, s in zip(adams_bashforth(levels, 0.1), levels, strict=True))
        assert integral == pytest.approx((0.1 ** (power + 1) - 0.3 ** (power + 1)) / (power + 1), rel=1e-9)


def test_heun_stochastic_is_heun_with_the_published_churn(denoiser: MixtureDenoiser, draws: Tensor) -> None:
    sigmas, noise = Karras(0.002, 80.0)(STEPS), feed(draws)
    expected = edm_sampler(denoiser, next(noise), noise, sigmas, None, 40.0, 0.05, 50.0, 1.003)
    actual = HeunStochastic(STEPS)(denoiser, feed(draws).__next__, sigmas)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0, 2.0])
def test_ancestral_step(eta: float) -> None:
    down, up = ancestral_step(3.0, 1.2, eta)
    theirs = sampling.get_ancestral_step(3.0, 1.2, eta)
    assert (down, up) == pytest.approx(theirs)
    assert down**2 + up**2 == pytest.approx(1.2**2)
    if eta == 1:
        assert up**2 == pytest.approx(1.2**2 * (3.0**2 - 1.2**2) / 3.0**2)


def edm_sampler(net, x: Tensor, noise, sigmas: Tensor, labels, s_churn, s_min, s_max, s_noise) -> Tensor:
    """Algorithm 2 of Karras et al. 2022 as in NVlabs/edm's generate.py: scalar sigma, labels by position."""
    num_steps = len(sigmas) - 1
    x_next = x * sigmas[0]
    for i, (t_cur, t_next) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        x_cur = x_next
        gamma = min(s_churn / num_steps, math.sqrt(2) - 1) if s_min <= t_cur <= s_max else 0
        t_hat = t_cur + gamma * t_cur
        x_hat = x_cur + (t_hat**2 - t_cur**2).sqrt() * s_noise * (next(noise) if gamma > 0 else 0)
        d_cur = (x_hat - net(x_hat, t_hat, labels)) / t_hat
        x_next = x_hat + (t_next - t_hat) * d_cur
        if i < num_steps - 1:
            d_prime = (x_next - net(x_next, t_next, labels)) / t_next
            x_next = x_hat + (t_next - t_hat) * (0.5 * d_cur + 0.5 * d_prime)
    return x_next


@pytest.mark.parametrize("window", [(0.0, math.inf), (0.05, 50.0)])
def test_edm_churn_in_a_window(denoiser: MixtureDenoiser, draws: Tensor, window: tuple[float, float]) -> None:
    sigmas = Karras(0.002, 80.0)(STEPS)
    labels = torch.arange(64) % 3
    noise = feed(draws)
    expected = edm_sampler(denoiser, next(noise), noise, sigmas, labels, 4.0, *window, 1.003)
    sampler = Heun(STEPS, s_churn=4.0, s_tmin=window[0], s_tmax=window[1], s_noise=1.003)
    actual = sampler(denoiser, feed(draws).__next__, sigmas, labels)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
