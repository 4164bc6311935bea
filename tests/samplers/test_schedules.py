"""Every schedule of conf/schedule is a decreasing walk from sigma_max to sigma_min to 0."""

import pytest
import torch
from torch import Tensor

from flowdiff.denoisers.wrappers import Clipped
from flowdiff.errors import ConfigError, spell
from flowdiff.samplers.ode import Euler, Heun
from flowdiff.samplers.schedules import Adaptive, Cosine, Geometric, Karras, Linear, Polyexponential, Schedule, Vp
from tests.helpers.analytic import GaussianDenoiser
from tests.helpers.configs import build, choices

SCHEDULES = choices("schedule")


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("num_steps", [2, 3, 50, 1000])
def test_levels_decrease_from_sigma_max_to_sigma_min_to_zero(name: str, num_steps: int) -> None:
    sigmas = build("schedule", name, sigma_min=0.002, sigma_max=80.0)(num_steps)
    assert sigmas.shape == (num_steps + 1,)
    assert sigmas.dtype == torch.float64
    assert (sigmas.diff() < 0).all()
    assert build("schedule", name, sigma_min=0.002, sigma_max=80.0).name == name
    assert sigmas[0].item() == 80.0
    assert sigmas[-2].item() == 0.002
    assert sigmas[-1].item() == 0.0


@pytest.mark.parametrize("name", SCHEDULES)
def test_one_step_goes_from_sigma_max_to_zero(name: str) -> None:
    assert build("schedule", name, sigma_min=0.002, sigma_max=80)(1).tolist() == [80.0, 0.0]


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_lower_start_is_the_schedule_made_with_that_sigma_max(name: str) -> None:
    schedule = build("schedule", name, sigma_min=0.002, sigma_max=80.0)
    assert torch.equal(schedule(9, sigma_max=0.5), build("schedule", name, sigma_min=0.002, sigma_max=0.5)(9))
    assert schedule(9)[0] == 80.0


@pytest.mark.parametrize("name", SCHEDULES)
def test_warp_and_unwarp_are_inverse_and_steps_equal_in_between(name: str) -> None:
    schedule = build("schedule", name, sigma_min=0.002, sigma_max=80.0)
    sigmas = schedule(40)[:-1]
    torch.testing.assert_close(schedule.unwarp(schedule.warp(sigmas)), sigmas)
    steps = schedule.warp(sigmas).diff()
    torch.testing.assert_close(steps, steps.mean().expand_as(steps))


def test_formulas() -> None:
    i = torch.arange(6, dtype=torch.float64) / 5
    karras = (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(Karras(0.002, 80.0)(6)[:-1], karras)
    torch.testing.assert_close(Geometric(0.002, 80.0)(6)[:-1], 80 * (0.002 / 80) ** i)
    torch.testing.assert_close(Linear(0.002, 80.0)(6)[:-1], 80 + i * (0.002 - 80))
    # Nichol & Dhariwal: alpha_bar = cos^2(pi t / 2), sigma^2 = (1 - alpha_bar) / alpha_bar, equal steps of t.
    cosine = Cosine(0.002, 80.0)(6)[:-1]
    t = 2 / torch.pi * (1 / (1 + cosine**2)).sqrt().acos()
    torch.testing.assert_close(t.diff(), (t[-1] - t[0]).expand(5) / 5, rtol=1e-6, atol=0)


def gaussian(deviation: float) -> GaussianDenoiser:
    return GaussianDenoiser(torch.zeros(4, dtype=torch.float64), deviation**2 * torch.eye(4, dtype=torch.float64))


def normals(n: int = 200) -> Tensor:
    return torch.randn(n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("deviation", [0.05, 1.0])
def test_adaptive_makes_equal_steps_in_the_change_of_d(deviation: float) -> None:
    """Of N(0, v I): on a path x = c (v + s^2)^(1/2), D = v x / (v + s^2) = c v (v + s^2)^(-1/2), and so the steps are
    equal in (v + s^2)^(-1/2)."""
    schedule = Adaptive(0.002, 80.0, grid=400, even=1e-6).fit(gaussian(deviation), normals, None)
    sigmas = schedule(20)
    way = (deviation**2 + sigmas[:-1] ** 2).rsqrt()
    steps = way.diff()
    # what a step may miss: the paths are Euler's, and F is straight between the levels of the grid
    torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=0.15, atol=0)
    assert (sigmas.diff() < 0).all() and sigmas[0] == 80.0 and sigmas[-2] == 0.002


def test_adaptive_keeps_its_contract_when_fitted() -> None:
    schedule = Adaptive(0.002, 80.0)
    fitted = schedule.fit(gaussian(0.3), normals, None)
    assert torch.equal(schedule(9), Geometric(0.002, 80.0)(9)), "the one that was asked stays what it was"
    assert torch.equal(fitted(9), schedule.fit(gaussian(0.3), normals, None)(9))
    sigmas = torch.logspace(-4, 3, 50, dtype=torch.float64)
    torch.testing.assert_close(fitted.unwarp(fitted.warp(sigmas)), sigmas)
    assert (fitted.warp(sigmas).diff() > 0).all()
    for start in (0.1, 5.0, 200.0):
        levels = fitted(7, sigma_max=start)
        assert (levels.diff() < 0).all() and levels[0] == start and levels[-2:].tolist() == [0.002, 0.0]
    assert fitted(1).tolist() == [80.0, 0.0]
    even = Adaptive(0.002, 80.0, even=1.0).fit(gaussian(0.3), normals, None)
    torch.testing.assert_close(even(9), Geometric(0.002, 80.0)(9))


def test_adaptive_beats_geometric_on_the_model_it_was_made_from() -> None:
    """By Euler's error against a fine solution, with 12 steps."""
    denoiser, x = gaussian(0.3), normals()

    def draw(schedule: Schedule, num_steps: int) -> Tensor:
        return Euler(num_steps)(denoiser, lambda: x, schedule(num_steps))

    exact = Heun(400)(denoiser, lambda: x, Karras(0.002, 80.0)(400))
    adaptive, geometric = Adaptive(0.002, 80.0).fit(denoiser, normals, None), Geometric(0.002, 80.0)
    assert (draw(adaptive, 12) - exact).norm() < 0.7 * (draw(geometric, 12) - exact).norm()


def test_adaptive_survives_a_model_that_is_broken_or_does_not_move() -> None:
    def broken(x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        wild = torch.arange(len(x))[:, None] % 2 == 1
        return torch.where(wild & (sigma[:, None] < 1), torch.nan, gaussian(0.3)(x, sigma))

    def still(x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x)

    def nothing(x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return torch.full_like(x, torch.nan)

    half = Adaptive(0.002, 80.0).fit(broken, normals, None)(20)
    assert (half.diff() < 0).all()
    torch.testing.assert_close(half, Adaptive(0.002, 80.0).fit(gaussian(0.3), normals, None)(20), rtol=0.3, atol=0)
    for denoiser in (still, nothing, Clipped(nothing, -1, 1)):
        torch.testing.assert_close(Adaptive(0.002, 80.0).fit(denoiser, normals, None)(9), Geometric(0.002, 80.0)(9))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(
    ("sigma_min", "sigma_max", "key"),
    [
        (80.0, 0.002, "sigma_min"),
        (1.0, 1.0, "sigma_min"),
        (0.0, 80.0, "sigma_min"),
        (-1.0, 80.0, "sigma_min"),
        (float("nan"), 80.0, "sigma_min"),
        (0.002, float("inf"), "sigma_max"),
        (0.002, None, "sigma_max"),
        ("low", 80.0, "sigma_min"),
    ],
)
def test_a_bad_range_is_named(name: str, sigma_min: object, sigma_max: object, key: str) -> None:
    config = {"sigma_min": sigma_min, "sigma_max": sigma_max}
    with pytest.raises(Exception, match=key) as caught:
        build("schedule", name, **config)
    cause = caught.value if isinstance(caught.value, ConfigError) else caught.value.__cause__
    assert isinstance(cause, ConfigError)
    assert str(cause).startswith(f"{key}={spell(config[key])}: ")


@pytest.mark.parametrize("name", choices("schedule"))
def test_one_step_may_start_at_sigma_min(name: str) -> None:
    """The density of noise=fixed knows no other level: inverting the flow there is all of its sampling."""
    schedule = build("schedule", name, sigma_min=0.002, sigma_max=80.0)
    assert schedule(1, sigma_max=0.002).tolist() == [0.002, 0.0]


def test_other_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"num_steps=0: must be a whole number"):
        Karras(0.002, 80.0)(0)
    with pytest.raises(ConfigError, match=r"sigma_start=0\.001: must be larger than sigma_min=0\.002"):
        Karras(0.002, 80.0)(10, sigma_max=0.001)
    with pytest.raises(ConfigError, match=r"sigma_start=0\.002: must be larger than sigma_min=0\.002"):
        Karras(0.002, 80.0)(2, sigma_max=0.002)
    with pytest.raises(ConfigError, match=r"rho=0"):
        Karras(0.002, 80.0, rho=0)
    with pytest.raises(ConfigError, match=r"scale=-1"):
        Cosine(0.002, 80.0, scale=-1)
    with pytest.raises(ConfigError, match=r"rho=nan"):
        Polyexponential(0.002, 80.0, rho=float("nan"))
    with pytest.raises(ConfigError, match=r"beta_min=0"):
        Vp(0.002, 80.0, beta_min=0)
    with pytest.raises(ConfigError, match=r"grid=1: must be a whole number from 2"):
        Adaptive(0.002, 80.0, grid=1)
    with pytest.raises(ConfigError, match=r"even=0"):
        Adaptive(0.002, 80.0, even=0)
