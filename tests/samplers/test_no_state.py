"""A sampler holds its parameters and nothing else: threads share one, a draw leaves it as it was."""

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowdiff.denoisers.wrappers import Denoise
from flowdiff.samplers.base import Sampler
from flowdiff.samplers.batched import BatchedSampler, Drawn
from flowdiff.samplers.noise import IndexedNoise, NoiseSource
from flowdiff.samplers.ode import Euler
from flowdiff.samplers.schedules import Adaptive, Karras
from tests.helpers.analytic import MixtureDenoiser
from tests.helpers.configs import build, choices

SCHEDULE = Karras(0.002, 80.0)
SHAPE = (1, 2, 2)
THREADS = 2


class Meeting(nn.Module):
    """A mixture's denoiser at which so many threads meet before each evaluation: they are always in the same step."""

    has_density = has_inverse = normalized = True
    shape, num_classes = SHAPE, 2

    def __init__(self, threads: int = 1) -> None:
        super().__init__()
        means = torch.tensor([[-0.5, 0.5, 0.2, 0.0], [0.5, 0.1, -0.3, 0.4]])
        covariances = 0.1 * torch.eye(4).expand(2, 4, 4)
        self.mixture = MixtureDenoiser(means, covariances, torch.tensor([0.4, 0.6]), SHAPE)
        self.barrier = threading.Barrier(threads, timeout=20)
        self.eval()

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        self.barrier.wait()
        return self.mixture(x, sigma, labels)

    def log_prob(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.mixture.log_prob(x, sigma, labels)

    def inverse(self, z: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        self.barrier.wait()
        return self.mixture.inverse(z, sigma, labels)


def in_threads(action: Callable[[int], Any]) -> list[Any]:
    """What `action` returns for 0, 1, …, each called in a thread of its own at the same time."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(action, range(THREADS)))


def sampler_named(name: str) -> Sampler:
    return build("sampler", name, num_steps=12, sigma_start=0.3)


@pytest.mark.parametrize("name", choices("sampler"))
def test_threads_share_a_sampler(name: str) -> None:
    sampler = sampler_named(name)

    def draw(denoiser: Meeting, thread: int) -> tuple[Tensor, dict[str, Tensor]]:
        noise, labels = IndexedNoise(range(10 * thread, 10 * thread + 5), SHAPE), torch.arange(thread, 5 + thread) % 2
        walk = sampler.walk()
        return walk(denoiser, noise, sampler.sigmas(SCHEDULE), labels), walk.records

    meeting = Meeting(THREADS)
    found = in_threads(lambda thread: draw(meeting, thread))
    for thread, (x, records) in enumerate(found):
        alone, expected = draw(Meeting(), thread)
        assert torch.equal(x, alone)
        assert records.keys() == expected.keys()
        assert all(torch.equal(records[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", choices("sampler"))
def test_threads_share_a_batched_sampler(name: str) -> None:
    """Two batches each, the last one filled up."""
    meeting, sampler = Meeting(THREADS), sampler_named(name)
    batched = BatchedSampler(meeting, sampler, SCHEDULE, guidance_scale=1.5, batch_size=4, tile=2)

    def draw(batched: BatchedSampler, thread: int) -> Drawn:
        return batched.draw(torch.arange(thread, 7 + thread) % 2, range(10 * thread, 10 * thread + 7), quiet=True)

    found = in_threads(lambda thread: draw(batched, thread))
    alone = BatchedSampler(Meeting(), sampler, SCHEDULE, guidance_scale=1.5, batch_size=4, tile=2)
    for thread, drawn in enumerate(found):
        expected = draw(alone, thread)
        assert torch.equal(drawn.x, expected.x)
        assert drawn.nfe == expected.nfe and drawn.evaluations == expected.evaluations
        assert drawn.statistics == expected.statistics and drawn.conditions == expected.conditions


@pytest.mark.parametrize("name", choices("sampler"))
def test_a_draw_leaves_a_sampler_as_it_was(name: str) -> None:
    sampler = sampler_named(name)
    batched = BatchedSampler(Meeting(), sampler, Adaptive(0.002, 80.0, grid=4), tile=2)
    before, fields = copy.deepcopy(vars(sampler)), dict(vars(batched))
    batched.sigmas()
    fitted = vars(batched).keys() - fields.keys()
    assert fitted == {"_fitted", "rows"}, "the schedule that is made from the model, and the size of a call"
    kept = dict(vars(batched))
    batched.draw(None, range(3), quiet=True)
    assert vars(sampler) == before
    assert vars(batched) == kept and all(vars(batched)[key] is value for key, value in kept.items())


class Straight(Sampler):
    """Euler's steps from a start of its own, as someone outside of the package would write it."""

    def start(self, denoiser: Any, noise: NoiseSource, sigma: float, labels: Tensor | None) -> Tensor:
        return sigma * noise() / 2

    def step(self, denoise: Denoise, noise: NoiseSource, x: Tensor, sigma: float, to: float) -> Tensor:
        return torch.lerp(denoise(x, sigma), x, to / sigma)


def test_a_stranger_gives_a_step_and_a_start_alone() -> None:
    sampler, sigmas, noise = Straight(8), SCHEDULE(8), IndexedNoise([1, 2], SHAPE)()
    x = sampler(Meeting(), lambda: noise, sigmas)
    torch.testing.assert_close(x, Euler(8)(Meeting(), lambda: noise / 2, sigmas))
    drawn = BatchedSampler(Meeting(), sampler, SCHEDULE, tile=2).draw(None, [1, 2], quiet=True)
    assert torch.equal(drawn.x, x) and drawn.nfe == 8 and drawn.statistics == {}
    assert drawn.conditions["sampler"] == "straight"
