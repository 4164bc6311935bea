"""azula's samplers with the few lines of docs/guides/export.md: the numbers of flowdiff's own of the same kind."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import flowdiff
from flowdiff.samplers.ancestral import Ancestral, Ddim
from flowdiff.samplers.base import Sampler
from flowdiff.samplers.ode import Euler, Heun
from flowdiff.samplers.schedules import Geometric
from tests.helpers.analytic import MixtureDenoiser
from tests.helpers.pages import ROOT, block

azula = pytest.importorskip("azula.sample")
noise = pytest.importorskip("azula.noise")

STEPS = 12
PAIRS: list[tuple[Callable[[int], Sampler], Callable[..., Any]]] = [
    (Euler, azula.EulerSampler),
    (Ddim, azula.DDIMSampler),
    (Heun, azula.HeunSampler),
    (Ancestral, azula.DDPMSampler),
]


@pytest.fixture(scope="module")
def adapter() -> Callable[..., Any]:
    """The class of the page."""
    code = block("python", "class Flowdiff", ROOT / "docs" / "guides" / "export.md")
    found: dict[str, Any] = {}
    exec(code[: code.index("\ndenoiser = ")], found)
    return found["Flowdiff"]


@pytest.fixture
def denoiser() -> MixtureDenoiser:
    means = torch.tensor([[-0.6, 0.3], [0.5, 0.1], [0.0, -0.7]], dtype=torch.float64)
    covariances = torch.tensor([[0.04, 0.01], [0.01, 0.02]], dtype=torch.float64).expand(3, 2, 2)
    return MixtureDenoiser(means, covariances, torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64))


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("schedule", [noise.VESchedule(0.002, 80.0), noise.VPSchedule(), noise.RectifiedSchedule()])
@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=lambda case: getattr(case, "__name__", ""))
def test_the_same_walk(
    ours: Callable[[int], Sampler],
    theirs: Callable[..., Any],
    schedule: Any,
    labelled: bool,
    denoiser: MixtureDenoiser,
    adapter: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Down the levels σ/α of any schedule of theirs; ours takes one step more, from the lowest to D."""
    draws = torch.randn(STEPS + 1, 64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(64) % 3 if labelled else None
    sampler = theirs(adapter(denoiser, schedule), steps=STEPS - 1, silent=True, dtype=torch.float64)
    alphas, sigmas = schedule(sampler.timesteps)
    levels = torch.cat([sigmas / alphas, sigmas.new_zeros(1)])
    expected = ours(STEPS)(denoiser, iter(draws.unbind()).__next__, levels, labels)
    fresh = iter(draws[1:].unbind())
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn_like", lambda like: next(fresh))
        x = sampler(sigmas[0] * draws[0], labels=labels)
    actual = denoiser(x / alphas[-1], levels[-2].expand(64), labels)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    assert len(set(expected[:, 0].tolist())) == 64


def test_ves_levels_are_geometric() -> None:
    theirs = noise.VESchedule(0.002, 80.0)(torch.linspace(1, 0, STEPS, dtype=torch.float64))[1]
    torch.testing.assert_close(theirs, Geometric(0.002, 80.0)(STEPS)[:-1])


def test_a_loaded_flow(adapter: Callable[..., Any]) -> None:
    """The model that ships with the package, of one class, in float32: to 1e-4."""
    model, labels = flowdiff.load("digits"), torch.full((8,), 3)
    x, levels = torch.randn(8, *model.shape, generator=torch.Generator().manual_seed(0)), Geometric(0.02, 80.0)(6)
    expected = Heun(6)(model, lambda: x, levels.float(), labels)
    sampler = azula.HeunSampler(adapter(model, noise.VESchedule(0.02, 80.0)), steps=5, silent=True)
    actual = model(sampler(80 * x, labels=labels), 0.02, labels)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert expected.isfinite().all() and expected.std() > 0.1
