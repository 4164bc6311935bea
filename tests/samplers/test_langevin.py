"""Langevin steps: the Metropolis test, what it is for, and the step size that it asks for."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from flowdiff.samplers.langevin import Density, State, StepSize, langevin_step, optimal_step
from tests.helpers.analytic import MixtureDenoiser

SIGMA = 0.1


@pytest.fixture
def mixture() -> MixtureDenoiser:
    """In the plane, 30 % around (-0.6, 0) and 70 %, narrower, around (0.6, 0); the modes overlap."""
    means = torch.tensor([[-0.6, 0.0], [0.6, 0.0]], dtype=torch.float64)
    covariances = torch.diag_embed(torch.tensor([[0.16, 0.09], [0.03, 0.09]], dtype=torch.float64))
    return MixtureDenoiser(means, covariances, torch.tensor([0.3, 0.7], dtype=torch.float64))


def density_of(denoiser: MixtureDenoiser, sigma: float = SIGMA) -> Density:
    return lambda x: (denoiser.score(x, sigma), denoiser.log_prob(x, sigma))


def walk(
    density: Density, x: Tensor, step: StepSize | Tensor, num_steps: int, adjusted: bool = True, seed: int = 0
) -> tuple[State, Tensor]:
    """Where the chains are after the steps, and the share of steps that each of them accepted."""
    generator = torch.Generator().manual_seed(seed)
    state, total = State(x, *density(x)), torch.zeros(len(x), dtype=x.dtype)
    for _ in range(num_steps):
        noise = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        uniform = torch.rand(len(x), dtype=x.dtype, generator=generator) if adjusted else None
        tau = step.value if isinstance(step, StepSize) else step
        state, accepted = langevin_step(density, state, tau, noise, uniform)
        if isinstance(step, StepSize):
            step.update(accepted)
        total += accepted
    return state, total / num_steps


def test_the_acceptance_is_that_of_the_two_proposal_densities(mixture: MixtureDenoiser) -> None:
    density = density_of(mixture)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 2, dtype=torch.float64, generator=generator)
    noise = torch.randn(500, 2, dtype=torch.float64, generator=generator)
    tau = torch.linspace(0.01, 0.3, 500, dtype=torch.float64)
    state = State(x, *density(x))
    moved, _ = langevin_step(density, state, tau, noise)
    deviation = (2 * tau).sqrt()[:, None]
    there = Normal(x + tau[:, None] * state.score, deviation).log_prob(moved.x).sum(1)
    back = Normal(moved.x + tau[:, None] * moved.score, deviation).log_prob(x).sum(1)
    alpha = (moved.log_prob + back - state.log_prob - there).exp()
    assert 0.2 < (alpha < 1).double().mean() < 0.95
    for factor, expected in ((0.999, alpha > 0), (1.001, alpha >= 1)):
        uniform = (alpha * factor).clamp(max=1 - 1e-9)
        after, accepted = langevin_step(density, state, tau, noise, uniform)
        assert torch.equal(accepted, expected)
        torch.testing.assert_close(after, State(*(torch.where(accepted.view(-1, *[1] * (a.dim() - 1)), b, a)
                                                  for a, b in zip(state, moved, strict=True))))  # fmt: skip


def test_adjusted_steps_keep_the_weights_where_unadjusted_ones_lose_them(mixture: MixtureDenoiser) -> None:
    """6,000 exact samples, 60 steps of size 0.05, which is large for the narrow mode."""
    z = torch.randn(6000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x, step = mixture.inverse(z, SIGMA), torch.full((6000,), 0.05, dtype=torch.float64)
    truth = float((x[:, 0] < 0).double().mean())
    right, acceptance = walk(density_of(mixture), x, step, 60)
    wrong, always = walk(density_of(mixture), x, step, 60, adjusted=False)
    assert abs(right.x[:, 0].lt(0).double().mean() - truth) < 0.02
    assert wrong.x[:, 0].lt(0).double().mean() - truth > 0.15
    torch.testing.assert_close(right.x.var(0), x.var(0), rtol=0.05, atol=0)
    assert (wrong.x.var(0) > 1.2 * x.var(0)).all()
    assert 0.7 < acceptance.mean() < 0.8 and (always == 1).all()


def test_unadjusted_steps_have_the_variance_that_is_known_for_a_gaussian() -> None:
    def density(x: Tensor) -> tuple[Tensor, Tensor]:
        return -x / 0.5, Normal(0.0, math.sqrt(0.5)).log_prob(x).sum(1)

    start = 0.7 * torch.randn(20000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    state, _ = walk(density, start, torch.full((20000,), 0.3, dtype=torch.float64), 30, adjusted=False)
    assert float(state.x.var()) == pytest.approx(0.5 / (1 - 0.3 / (2 * 0.5)), rel=0.04)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["score", "log_prob", "both"])
def test_what_is_not_finite_is_rejected(bad: float, where: str) -> None:
    """Beyond x = 0.5 the density is broken: no chain goes there, and all others move."""

    def density(x: Tensor) -> tuple[Tensor, Tensor]:
        beyond = x[:, 0] > 0.5
        score = -x.masked_fill(beyond[:, None] & (where != "log_prob"), bad)
        return score, (-x.square().sum(1) / 2).masked_fill(beyond & (where != "score"), bad)

    x = torch.zeros(400, 2, dtype=torch.float64)
    state, acceptance = walk(density, x, torch.full((400,), 0.3, dtype=torch.float64), 20)
    assert all(part.isfinite().all() for part in state)
    assert state.x[:, 0].max() <= 0.5
    assert 0.3 < acceptance.mean() < 0.9
    forward, accepted = langevin_step(
        density, State(x, *density(x)), torch.ones(400, dtype=torch.float64), torch.ones_like(x), torch.zeros(400)
    )
    assert not accepted.any() and torch.equal(forward.x, x)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_chain_leaves_a_point_without_density(bad: float) -> None:
    def density(x: Tensor) -> tuple[Tensor, Tensor]:
        return -x, torch.where(x[:, 0] == 0, bad, -x.square().sum(1) / 2)

    x = torch.zeros(3, 2, dtype=torch.float64)
    _, accepted = langevin_step(
        density, State(x, *density(x)), torch.ones(3), torch.ones_like(x), torch.full((3,), 0.9)
    )
    assert accepted.all()


@pytest.mark.parametrize("factor", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("dim", [1, 64])
def test_step_sizes_reach_the_acceptance_wanted(factor: float, dim: int) -> None:
    def density(x: Tensor) -> tuple[Tensor, Tensor]:
        return -x, -x.square().sum(1) / 2

    generator = torch.Generator().manual_seed(3)
    x = torch.randn(200, dim, dtype=torch.float64, generator=generator)
    step = StepSize(torch.full((200,), factor * optimal_step(x[0].numel()), dtype=torch.float64))
    state, _ = walk(density, x, step, 150)
    step.freeze()
    frozen = step.value
    _, acceptance = walk(density, state.x, step, 100, seed=4)
    assert torch.equal(step.value, frozen)
    assert abs(acceptance.mean() - 0.57) < 0.05
    assert (acceptance - 0.57).abs().quantile(0.9) < 0.2, "each chain by itself"
    if dim == 64:
        assert float(frozen.median()) == pytest.approx(optimal_step(x[0].numel()), rel=0.35)


def test_a_step_size_without_decay_follows_a_target_that_moves() -> None:
    """The deviation of the Gaussian shrinks a thousandfold in 300 steps."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(300, 8, dtype=torch.float64, generator=generator)
    step, total = StepSize(torch.full((300,), 0.5, dtype=torch.float64), decay=0.0), 0.0
    for i in range(300):
        scale, ratio = 1000 ** (-i / 300), 1000 ** (-1 / 300)

        def density(x: Tensor, scale: float = scale) -> tuple[Tensor, Tensor]:
            return -x / scale**2, -(x / scale).square().sum(1) / 2

        noise = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        state, accepted = langevin_step(
            density, State(x, *density(x)), step.value, noise, torch.rand(300, generator=generator)
        )
        step.update(accepted)
        x, total = state.x * ratio, total + accepted.double().mean()
    assert abs(total / 300 - 0.57) < 0.1
