"""The samplers' contract: noise by index, evaluations, guidance, clipping, callbacks, and user's mistakes."""

import pytest
import torch
from torch import Tensor

from flowdiff.denoisers.wrappers import Clipped, Counted, Guided, Tiled
from flowdiff.errors import ConfigError, FlowdiffError
from flowdiff.samplers.ancestral import Ancestral
from flowdiff.samplers.base import Sampler, Step
from flowdiff.samplers.corrected import Mala, Ula
from flowdiff.samplers.dpmpp_sde import DpmppSde
from flowdiff.samplers.inversion import Inversion, InversionDenoise
from flowdiff.samplers.mcmc import Mcmc
from flowdiff.samplers.multistep import Dpmpp2m, Dpmpp2mSde, Lms
from flowdiff.samplers.noise import IndexedNoise
from flowdiff.samplers.ode import Euler, Heun
from flowdiff.samplers.schedules import Karras
from tests.helpers.analytic import GaussianDenoiser, MixtureDenoiser
from tests.helpers.configs import build, choices

SCHEDULE = Karras(0.002, 80.0)
VALUES = {"num_steps": 6, "sigma_start": 0.3}
SHAPE = (1, 2, 2)


@pytest.fixture
def denoiser() -> MixtureDenoiser:
    means = torch.tensor([[-0.5, 0.5, 0.2, 0.0], [0.5, 0.1, -0.3, 0.4]])
    return MixtureDenoiser(means, 0.1 * torch.eye(4).expand(2, 4, 4), torch.tensor([0.4, 0.6]), SHAPE)


@pytest.mark.parametrize("name", choices("sampler"))
def test_a_sample_does_not_depend_on_its_batch(name: str, denoiser: MixtureDenoiser) -> None:
    sampler = build("sampler", name, **VALUES)
    sigmas = sampler.sigmas(SCHEDULE)
    seeds = list(range(100, 112))
    labels = torch.arange(12) % 2

    def draw(size: int) -> Tensor:
        parts = [
            sampler(denoiser, IndexedNoise(seeds[i : i + size], SHAPE), sigmas, labels[i : i + size])
            for i in range(0, 12, size)
        ]
        return torch.cat(parts)

    whole = draw(12)
    torch.testing.assert_close(draw(5), whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(draw(1), whole, rtol=1e-5, atol=1e-6)
    assert torch.pdist(whole.flatten(1)).min() > 1e-2


def test_indexed_noise() -> None:
    noise = IndexedNoise([7, 8, 9], (1, 5, 5))
    first, second = noise(), noise()
    assert first.shape == (3, 1, 5, 5) and first.dtype == torch.float32
    assert not torch.equal(first, second)
    alone = IndexedNoise([8], (1, 5, 5))
    assert torch.equal(alone(), first[1:2])
    assert torch.equal(alone(), second[1:2])
    torch.manual_seed(0)
    before = torch.get_rng_state()
    noise()
    assert torch.equal(torch.get_rng_state(), before), "the global generator is not touched"
    many = IndexedNoise(range(4000), (3,), dtype=torch.float64)()
    torch.testing.assert_close(many.mean(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=0.06)
    torch.testing.assert_close(many.T.cov(), torch.eye(3, dtype=torch.float64), rtol=0, atol=0.08)
    with pytest.raises(ValueError, match="seeds"):
        IndexedNoise([2**32], (2,))


@pytest.mark.parametrize(
    ("sampler", "nfe", "inversions"),
    [
        (Euler(6), 6, 0),
        (Heun(6), 11, 0),
        (Heun(6, s_churn=2.0), 11, 0),
        (Ancestral(6), 6, 0),
        (Inversion(0.3), 1, 1),
        (InversionDenoise(0.3, 6), 11, 1),
        (Dpmpp2m(6), 6, 0),
        (Dpmpp2mSde(6), 6, 0),
        (DpmppSde(6), 11, 0),
        (Lms(6), 6, 0),
        (Ula(6), 2 + 5 * 2, 0),
        (Mala(6, n_corrector=3), 2 + 5 * 4, 0),
        (Mcmc(0.3, 6), 2 + 6, 1),
        (Mcmc(0.3, 6, start="noise"), 2 + 6, 0),
    ],
)
@pytest.mark.parametrize("by_gradient", [True, False])
def test_number_of_evaluations(
    sampler: Sampler, nfe: int, inversions: int, by_gradient: bool, denoiser: MixtureDenoiser
) -> None:
    class Known(MixtureDenoiser):
        def score_and_log_prob(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
            return self.score(x, sigma, labels), self.log_prob(x, sigma, labels)

    known = Known(denoiser.means, denoiser.covariances, denoiser.weights, SHAPE)
    known.by_gradient = by_gradient
    counted = Counted(known)
    labels = torch.tensor([0, 1])
    for scale in (1, 2):
        counted.reset()
        sampler(Guided(counted, scale), IndexedNoise([0, 1], SHAPE), sampler.sigmas(SCHEDULE), labels)
        assert (counted.nfe, counted.forward, counted.inversions) == (scale * nfe, scale * nfe, inversions)
        if by_gradient:
            assert counted.gradient == scale * nfe
        else:  # the score of a Metropolis step takes one all the same
            assert counted.gradient == scale * (nfe - 2 + isinstance(sampler, Mcmc) if sampler.needs_density else 0)


@pytest.mark.parametrize("name", choices("sampler"))
def test_a_sampler_can_be_used_again(name: str, denoiser: MixtureDenoiser) -> None:
    """Nothing of one call is left in the next, not even after one that failed half-way."""
    sampler, sigmas = build("sampler", name, **VALUES), Karras(0.002, 80.0)

    def draw(seeds: list[int], callback=None) -> tuple[Tensor, dict[str, Tensor]]:
        walk, labels = sampler.walk(), torch.tensor(seeds) % 2
        return walk(denoiser, IndexedNoise(seeds, SHAPE), sampler.sigmas(sigmas), labels, callback), walk.records

    def fail(step: Step) -> None:
        if step.number == min(3, step.total):
            raise KeyboardInterrupt

    first, records = draw([1, 2, 3])
    draw([4, 5])
    with pytest.raises(KeyboardInterrupt):
        draw([6], fail)
    again, found = draw([1, 2, 3])
    assert torch.equal(again, first)
    assert records.keys() == found.keys()
    assert all(torch.equal(found[key], value) and len(value) == 3 for key, value in records.items())


@pytest.mark.parametrize("name", choices("sampler"))
def test_a_sampler_has_the_name_of_its_choice(name: str) -> None:
    assert build("sampler", name, **VALUES).name == name


def test_guidance(denoiser: MixtureDenoiser) -> None:
    x = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0))
    sigma, labels = torch.full((5,), 0.6), torch.tensor([0, 1, 1, 0, 0])
    conditional, null = denoiser(x, sigma, labels), denoiser(x, sigma, None)
    for scale in (0.0, 0.5, 1.0, 3.0):
        torch.testing.assert_close(Guided(denoiser, scale)(x, sigma, labels), null + scale * (conditional - null))
    assert torch.equal(Guided(denoiser, 3.0)(x, sigma, None), null)
    guided = Guided(denoiser, 3.0)
    assert (guided.shape, guided.num_classes, guided.has_inverse) == (SHAPE, 2, True)


def test_guided_score_and_density(denoiser: MixtureDenoiser) -> None:
    x = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0))
    sigma, labels = torch.full((5,), 0.6), torch.tensor([0, 1, 1, 0, 0])
    conditional, null = denoiser.log_prob(x, sigma, labels), denoiser.log_prob(x, sigma)
    for scale in (0.0, 0.5, 1.0, 3.0):
        guided = Guided(denoiser, scale)
        score, log_prob = guided.score_and_log_prob(x, sigma, labels)
        torch.testing.assert_close(log_prob, conditional + (scale - 1) * (conditional - null))
        torch.testing.assert_close(x + 0.36 * score, guided(x, sigma, labels))
    torch.testing.assert_close(Guided(denoiser, 3.0).score_and_log_prob(x, sigma)[1], null)


def test_guidance_makes_more_of_the_class(denoiser: MixtureDenoiser) -> None:
    labels = torch.ones(200, dtype=torch.long)
    evidence = []
    for scale in (0.0, 1.0, 2.0):
        x = Heun(12)(Guided(denoiser, scale), IndexedNoise(range(200), SHAPE), SCHEDULE(12), labels)
        evidence.append((denoiser.log_prob(x, 0.0, labels) - denoiser.log_prob(x, 0.0)).mean().item())
    assert evidence[0] < evidence[1] < evidence[2]


def test_clipping_keeps_a_wild_denoiser_in_range() -> None:
    def wild(x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return x.exp() * x.sign() * 10

    for sampler in (Euler(20), Heun(20), Heun(20, s_churn=5.0), Ancestral(20)):
        x = sampler(Clipped(wild, -1.0, 1.0), IndexedNoise(range(50), (2,)), SCHEDULE(20))
        assert x.abs().max() <= 1
    x = Euler(20)(wild, IndexedNoise(range(50), (2,)), SCHEDULE(20))
    assert not x.isfinite().all(), "without clipping this denoiser runs away, or the test above says nothing"
    with pytest.raises(ValueError, match="low must be smaller"):
        Clipped(wild, 1.0, -1.0)


def test_wrappers_nest(denoiser: MixtureDenoiser) -> None:
    wrapped = Clipped(Guided(Counted(Tiled(denoiser, 2)), 2.0), -1, 1)
    assert (wrapped.shape, wrapped.num_classes, wrapped.has_inverse) == (SHAPE, 2, True)
    assert (wrapped.has_density, wrapped.by_gradient) == (True, False)
    z = torch.randn(3, *SHAPE)
    sigma = torch.full((3,), 0.5)
    torch.testing.assert_close(wrapped.inverse(z, sigma), denoiser.inverse(z, sigma))
    score, log_prob = wrapped.score_and_log_prob(z, sigma)
    torch.testing.assert_close(log_prob, denoiser.log_prob(z, sigma))
    torch.testing.assert_close(z + 0.25 * score, denoiser(z, sigma).clamp(-1, 1))


@pytest.mark.parametrize("name", choices("sampler"))
def test_callback_hears_every_step_and_no_graph_is_kept(name: str, denoiser: MixtureDenoiser) -> None:
    sampler = build("sampler", name, **VALUES)
    sigmas = sampler.sigmas(SCHEDULE)
    denoiser.means.requires_grad_()
    steps: list[Step] = []
    x = sampler(denoiser, IndexedNoise(range(3), SHAPE), sigmas, None, steps.append)
    assert [step.number for step in steps] == list(range(1, sampler.num_steps + 1))
    assert all(step.total == sampler.num_steps for step in steps)
    assert [step.sigma for step in steps] + [steps[-1].sigma_next] == sigmas.tolist()
    assert torch.equal(steps[-1].x, x)
    assert not x.requires_grad


def test_the_last_step_returns_the_denoised_image(denoiser: MixtureDenoiser) -> None:
    seen: list[Tensor] = []

    def listen(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        seen.append(denoiser(x, sigma, labels))
        return seen[-1]

    for sampler in (Euler(4), Heun(4, s_churn=1.0), Ancestral(4), Dpmpp2m(4), Dpmpp2mSde(4), DpmppSde(4), Ula(4)):
        assert torch.equal(sampler(listen, IndexedNoise([1, 2], SHAPE), SCHEDULE(4)), seen[-1])


def test_ancestral_without_fresh_noise_is_euler(denoiser: MixtureDenoiser) -> None:
    a = Ancestral(8, eta=0.0)(denoiser, IndexedNoise([1, 2], SHAPE), SCHEDULE(8))
    torch.testing.assert_close(a, Euler(8)(denoiser, IndexedNoise([1, 2], SHAPE), SCHEDULE(8)))


@pytest.mark.parametrize("name", choices("sampler"))
def test_a_denoiser_without_inverse(name: str) -> None:
    class NoInverse(GaussianDenoiser):
        has_inverse = False

    sampler = build("sampler", name, **VALUES)
    denoiser = NoInverse(torch.zeros(2), torch.eye(2))
    if not sampler.needs_inverse:
        assert sampler(denoiser, IndexedNoise([0], (2,)), sampler.sigmas(SCHEDULE)).isfinite().all()
        return
    for wrapped in (denoiser, Guided(denoiser, 2.0), lambda x, sigma, labels: x):
        with pytest.raises(FlowdiffError, match=f"sampler={name}: needs a denoiser that can be inverted"):
            sampler(wrapped, IndexedNoise([0], (2,)), sampler.sigmas(SCHEDULE))


@pytest.mark.parametrize("name", choices("sampler"))
def test_a_denoiser_without_density(name: str, denoiser: MixtureDenoiser) -> None:
    sampler = build("sampler", name, **VALUES)
    if sampler.needs_inverse:
        return
    noise, sigmas = IndexedNoise([0], SHAPE), sampler.sigmas(SCHEDULE)

    def plain(x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return denoiser(x, sigma, labels)

    if not sampler.needs_density:
        assert sampler(plain, noise, sigmas).isfinite().all()
        return
    for wrapped in (plain, Guided(plain, 2.0)):
        with pytest.raises(FlowdiffError, match=f"sampler={name}: needs a denoiser with a density") as caught:
            sampler(wrapped, noise, sigmas)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dpmpp2mSde(5, eta=-1.0), r"^eta=-1\.0: "),
        (lambda: Dpmpp2mSde(5, s_noise="much"), r"^s_noise=much: "),
        (lambda: DpmppSde(5, r=0.0), r"^r=0\.0: "),
        (lambda: Lms(5, order=0), r"^order=0: must be a whole number"),
        (lambda: Euler(0), r"^num_steps=0: must be a whole number from 1 to 100000$"),
        (lambda: Heun(-3), r"^num_steps=-3: "),
        (lambda: Ancestral(2.5), r"^num_steps=2\.5: "),
        (lambda: Ancestral(True), r"^num_steps=true: "),
        (lambda: InversionDenoise(0.1, 0), r"^num_steps=0: "),
        (lambda: Heun(5, s_churn=-1.0), r"^s_churn=-1\.0: "),
        (lambda: Heun(5, s_noise=float("nan")), r"^s_noise=nan: "),
        (lambda: Heun(5, s_tmin=2.0, s_tmax=1.0), r"^s_tmin=2\.0: .*s_tmax=1\.0"),
        (lambda: Ancestral(5, eta=-0.1), r"^eta=-0\.1: "),
        (lambda: Ancestral(5, eta="all"), r"^eta=all: "),
        (lambda: Inversion(0.0), r"^sigma_start=0\.0: "),
        (lambda: InversionDenoise(None, 5), r"^sigma_start=null: "),
        (lambda: Guided(None, -1.0), r"^guidance_scale=-1\.0: "),
    ],
)
def test_mistakes_are_named(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_sigmas_of_another_length_or_order_are_refused(denoiser: MixtureDenoiser) -> None:
    noise = IndexedNoise([0], SHAPE)
    for sigmas in (SCHEDULE(4), SCHEDULE(5)[:-1], SCHEDULE(5).flip(0)):
        with pytest.raises(ValueError, match="sigmas must"):
            Euler(5)(denoiser, noise, sigmas)
    increasing = torch.tensor([1.0, 2.0, 3.0, 0.5, 0.1, 0.0])
    with pytest.raises(ValueError, match="decrease"):
        Euler(5)(denoiser, noise, increasing)
    with pytest.raises(ValueError, match="decrease"):
        Euler(2)(denoiser, noise, torch.tensor([1.0, 1.0, 0.0]))
    with pytest.raises(ValueError, match="one level"):
        Mcmc(1.0, 2)(denoiser, noise, torch.tensor([1.0, 0.5, 0.0]))
