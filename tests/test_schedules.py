"""Every schedule of conf/schedule is a decreasing walk from sigma_max to sigma_min to 0."""

import pytest
import torch
from configs import build, choices

from flowdiff.errors import ConfigError
from flowdiff.schedules import Cosine, Geometric, Karras, Linear

SCHEDULES = choices("schedule")


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("num_steps", [2, 3, 50, 1000])
def test_levels_decrease_from_sigma_max_to_sigma_min_to_zero(name: str, num_steps: int) -> None:
    sigmas = build("schedule", name, sigma_min=0.002, sigma_max=80.0)(num_steps)
    assert sigmas.shape == (num_steps + 1,)
    assert sigmas.dtype == torch.float64
    assert (sigmas.diff() < 0).all()
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
    assert str(cause).startswith(f"{key}={config[key]}: ")


def test_other_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"num_steps=0: must be an integer >= 1"):
        Karras(0.002, 80.0)(0)
    with pytest.raises(ConfigError, match=r"sigma_start=0\.001: must be larger than sigma_min=0\.002"):
        Karras(0.002, 80.0)(10, sigma_max=0.001)
    with pytest.raises(ConfigError, match=r"schedule\.rho=0"):
        Karras(0.002, 80.0, rho=0)
    with pytest.raises(ConfigError, match=r"schedule\.scale=-1"):
        Cosine(0.002, 80.0, scale=-1)
