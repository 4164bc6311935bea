"""Every whitening of conf/precondition is an exact affine bijection with its log-determinant; the three formulas."""

import dataclasses

import pytest
import torch
from torch import Tensor

from flowdiff.data.digits import Digits
from flowdiff.data.quantise import centres, dequantise
from flowdiff.data.statistics import DataStatistics
from flowdiff.denoisers.precondition import (
    Annealed,
    Gaussian,
    Gaussianised,
    Precondition,
    Scalar,
    Standardized,
    normal_log_prob,
)
from tests.helpers.analytic import GaussianDenoiser
from tests.helpers.configs import build, choices
from tests.helpers.models import CLASSES, statistics

D = 6
every = pytest.mark.parametrize("name", choices("precondition"))
SIGMA = torch.tensor([0.002, 0.1, 0.5, 2.0, 80.0], dtype=torch.float64)
CLASS = torch.tensor([0, 1, 2, CLASSES, 0])


def moments() -> DataStatistics:
    return statistics((D,))


def fitted(name: str) -> Precondition:
    module = build("precondition", name)(dim=D, num_classes=CLASSES).double()
    module.fit(moments())
    return module


def points() -> Tensor:
    noise = torch.randn(2, 5, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return noise[0] + SIGMA[:, None] * noise[1]


@every
def test_log_det_and_inverse(name: str) -> None:
    module, x = fitted(name), points()
    u, log_det = module(x, SIGMA, CLASS)
    torch.testing.assert_close(module.inverse(u, SIGMA, CLASS), x, rtol=1e-9, atol=1e-9)
    jacobian = torch.autograd.functional.jacobian(lambda x: module(x, SIGMA, CLASS)[0].sum(0), x)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian.transpose(0, 1)).logabsdet)


@every
def test_kappa(name: str) -> None:
    module = fitted(name)
    torch.testing.assert_close(module.kappa(SIGMA), (0.6 / (SIGMA**2 + 0.6**2).sqrt()) ** module.kappa_power)


@every
def test_saved_with_the_weights(name: str) -> None:
    fresh = build("precondition", name)(dim=D, num_classes=CLASSES).double()
    fresh.load_state_dict(fitted(name).state_dict())
    torch.testing.assert_close(fresh(points(), SIGMA, CLASS), fitted(name)(points(), SIGMA, CLASS))
    unfitted = build("precondition", name)(dim=D, num_classes=CLASSES).double()
    assert unfitted(points(), SIGMA, CLASS)[0].isfinite().all()
    assert not torch.equal(unfitted(points(), SIGMA, CLASS)[0], fresh(points(), SIGMA, CLASS)[0])


@every
def test_float32_is_close_to_float64(name: str) -> None:
    single = fitted(name).float()
    u, log_det = single(points().float(), SIGMA.float(), CLASS)
    expected = fitted(name)(points(), SIGMA, CLASS)
    torch.testing.assert_close(log_det.double(), expected[1], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(u.double(), expected[0], rtol=1e-2, atol=1e-2)


def gaussian(module: Precondition, sigma: float, label: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the Gaussian that the whitening turns into N(0, I)."""
    level, classes = torch.tensor([sigma], dtype=torch.float64), torch.tensor([label])
    zero = torch.zeros(1, D, dtype=torch.float64)
    mean = module.inverse(zero, level, classes)
    rows = [module.inverse(e[None], level, classes) - mean for e in torch.eye(D, dtype=torch.float64)]
    unwhiten = torch.cat(rows).T
    return mean[0], unwhiten @ unwhiten.T


@pytest.mark.parametrize("label", [0, CLASSES])
@pytest.mark.parametrize("sigma", SIGMA.tolist())
def test_formulas(sigma: float, label: int) -> None:
    s = moments()
    within = s.eigenvectors @ s.eigenvalues.diag() @ s.eigenvectors.T
    eye = torch.eye(D, dtype=torch.float64)
    w = sigma**2 / (sigma**2 + 0.6**2)
    expected = {
        Scalar: (0 * s.class_means[label], (sigma**2 + 0.6**2) * eye),
        Gaussian: (s.class_means[label], sigma**2 * eye + within),
        Annealed: (w * s.class_means[label], sigma**2 * eye + w * within + (1 - w) * 0.6**2 * eye),
    }
    for make, (mean, covariance) in expected.items():
        module = make(dim=D, num_classes=CLASSES).double()
        module.fit(s)
        torch.testing.assert_close(gaussian(module, sigma, label), (mean, covariance), rtol=1e-7, atol=1e-9)


def test_gaussian_starts_as_the_wiener_filter() -> None:
    s, x = moments(), points()
    module = fitted("gaussian")
    u, _ = module(x, SIGMA, CLASS)
    back = torch.autograd.functional.vjp(lambda x: module(x, SIGMA, CLASS)[0], x, u)[1]
    torch.testing.assert_close(x - SIGMA[:, None] ** 2 * back, s.wiener(x, SIGMA, CLASS), rtol=1e-6, atol=1e-8)


def test_wiener_is_the_exact_denoiser_of_gaussian_data() -> None:
    s, x = moments(), points()
    for label in range(CLASSES):
        within = s.eigenvectors @ s.eigenvalues.diag() @ s.eigenvectors.T
        exact = GaussianDenoiser(s.class_means[label], within)(x, SIGMA)
        labels = torch.full((5,), label)
        torch.testing.assert_close(s.wiener(x, SIGMA, labels), exact, rtol=1e-7, atol=1e-8)
    null = GaussianDenoiser(s.class_means[-1], within)(x, SIGMA)
    torch.testing.assert_close(s.wiener(x, SIGMA), null, rtol=1e-7, atol=1e-8)


def test_annealed_goes_from_scalar_to_gaussian() -> None:
    low = gaussian(fitted("annealed"), 1e-4, 0), gaussian(fitted("scalar"), 1e-4, 0)
    torch.testing.assert_close(*low, rtol=1e-4, atol=1e-4)
    high = gaussian(fitted("annealed"), 1e3, 0), gaussian(fitted("gaussian"), 1e3, 0)
    torch.testing.assert_close(high[0][0], high[1][0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(high[0][1] - 1e6 * torch.eye(D), high[1][1] - 1e6 * torch.eye(D), rtol=0, atol=1e-4)


def test_statistics_of_data() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (4000,), generator=generator)
    means = torch.tensor([[1.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, -1.0, 0.5]])
    spread = torch.tensor([1.0, 0.5, 0.2, 0.0])
    x = (means[labels] + torch.randn(4000, 4, generator=generator) * spread).view(4000, 1, 2, 2)
    s = DataStatistics.from_data(x, labels, 3)
    flat = x.flatten(1)
    assert (s.class_means.shape, s.eigenvalues.shape, s.eigenvectors.shape) == ((4, 4), (4,), (4, 4))
    torch.testing.assert_close(s.class_means[:3], means, rtol=0, atol=0.1)
    torch.testing.assert_close(s.class_means[3], flat.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(s.eigenvalues, spread**2, rtol=0, atol=0.06)
    assert (s.eigenvalues.diff() <= 0).all() and (s.eigenvalues >= 0).all()
    assert s.sigma_data == pytest.approx(flat.std(correction=0).item(), rel=1e-4)
    unlabelled = DataStatistics.from_data(x, None, 0)
    covariance = unlabelled.eigenvectors @ unlabelled.eigenvalues.diag() @ unlabelled.eigenvectors.T
    torch.testing.assert_close(covariance, flat.T.cov(correction=0), rtol=0, atol=1e-4)
    assert unlabelled.class_means.shape == (1, 4)


@every
def test_many_coordinates_have_a_diagonal_covariance(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with Q the identity; the eigenvectors, d² numbers, are nowhere."""
    s = moments()
    full = build("precondition", name)(dim=D, num_classes=CLASSES).double()
    full.fit(dataclasses.replace(s, eigenvectors=torch.eye(D, dtype=torch.float64)))
    monkeypatch.setattr("flowdiff.denoisers.precondition.MOST_DIM", D - 1)
    diagonal = build("precondition", name)(dim=D, num_classes=CLASSES).double()
    diagonal.fit(dataclasses.replace(s, eigenvectors=None))
    assert diagonal.eigenvectors.numel() == 0
    x = points()
    torch.testing.assert_close(diagonal(x, SIGMA, CLASS), full(x, SIGMA, CLASS))
    u, _ = full(x, SIGMA, CLASS)
    torch.testing.assert_close(diagonal.inverse(u, SIGMA, CLASS), full.inverse(u, SIGMA, CLASS))


def test_statistics_of_many_coordinates(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 4, generator=generator) * torch.tensor([1.0, 2.0, 0.5, 0.1])
    full = DataStatistics.from_data(x, None, 0, noise_variance=0.01)
    monkeypatch.setattr("flowdiff.data.statistics.MOST_DIM", 3)
    diagonal = DataStatistics.from_data(x, None, 0, noise_variance=0.01)
    assert diagonal.eigenvectors is None
    torch.testing.assert_close(diagonal.eigenvalues, x.var(0, correction=0) + 0.01)
    assert diagonal.sigma_data == full.sigma_data
    noisy, sigma = x + torch.randn(x.shape, generator=generator), torch.ones(500)
    expected = x.mean(0) + (noisy - x.mean(0)) * diagonal.eigenvalues / (diagonal.eigenvalues + 1)
    torch.testing.assert_close(diagonal.wiener(noisy, sigma), expected)
    errors = [(s.wiener(noisy, sigma) - x).square().mean().item() for s in (full, diagonal)]
    assert errors[0] <= errors[1] < 1.02 * errors[0]  # independent coordinates: nearly the same filter


# -- gaussianised begins never worse than standardized ----------------------------------------------------------


def pixels(name: str) -> tuple[Tensor, Tensor | None, int]:
    """Levels (N, C, H, W), labels and the number of levels of a data set whose classes hardly overlap, or of none."""
    generator = torch.Generator().manual_seed(0)

    def drawn(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    if name == "digits":
        return *Digits().images("train"), 17
    twelve = torch.arange(12).repeat_interleave(10)
    k, labels = {
        "constant classes": lambda: (drawn(0, 256, 12, 3, 1, 1)[twelve].expand(-1, -1, 4, 4), twelve),
        "one image a class": lambda: (drawn(0, 256, 12, 3, 4, 4), torch.arange(12)),
        "disjoint grays": lambda: (
            torch.cat([drawn(0, 60, 60, 1, 4, 4), drawn(190, 256, 60, 1, 4, 4)]),
            torch.arange(2).repeat_interleave(60),
        ),
        "a rare class": lambda: (
            torch.cat([drawn(0, 2, 300, 1, 4, 4) * 255, drawn(100, 102, 3, 1, 4, 4)]),
            torch.arange(2).repeat_interleave(torch.tensor([300, 3])),
        ),
        "black": lambda: (torch.zeros(40, 1, 4, 4, dtype=torch.int64), torch.arange(4).repeat(10)),
        "all equal": lambda: (drawn(0, 256, 1, 1, 4, 4).expand(40, -1, -1, -1), torch.arange(4).repeat(10)),
        "noise": lambda: (drawn(0, 256, 100, 1, 4, 4), torch.arange(4).repeat(25)),
        "without classes": lambda: (drawn(0, 256, 12, 3, 1, 1)[twelve].expand(-1, -1, 4, 4), None),
    }[name]()
    return k.to(torch.uint8), labels, 256


SETS = {
    "digits": True,
    "noise": True,
    "without classes": True,
    "a rare class": None,  # as measured
    "constant classes": False,
    "one image a class": False,
    "disjoint grays": False,
    "black": False,
    "all equal": False,
}


@pytest.mark.parametrize("name", SETS)
def test_gaussianised_begins_never_worse_than_standardized(name: str) -> None:
    k, labels, levels = pixels(name)
    classes = 0 if labels is None else int(labels.max()) + 1
    s = DataStatistics.from_data(centres(k, levels), labels, classes, (2 / levels) ** 2 / 12)
    generator = torch.Generator().manual_seed(1)
    x0 = dequantise(k, levels, generator).flatten(1)
    rows = torch.zeros(len(x0), dtype=torch.long) if labels is None else labels
    bent, plain = Gaussianised(x0.shape[1], classes), Standardized(x0.shape[1], classes)
    state = torch.get_rng_state()
    for module in (bent, plain):
        module.fit(s)
    assert torch.equal(state, torch.get_rng_state())  # a run's own random numbers stay what they were
    if SETS[name] is not None:
        assert bool(bent.bend) == SETS[name]
    for sigma in (0.002, 0.004, 0.01, 0.03, 0.08, 0.15, 0.25, 0.4, 0.5):
        x = x0 + sigma * torch.randn(x0.shape, generator=generator)
        level = torch.full((len(x),), sigma)
        ours, theirs = (normal_log_prob(*module(x, level, rows)) / x.shape[1] for module in (bent, plain))
        assert ours.isfinite().all()
        assert ours.mean() >= theirs.mean() - 2e-3, sigma
        back = bent.inverse(bent(x[:8], level[:8], rows[:8])[0], level[:8], rows[:8])
        assert (back - x[:8]).abs().max() < 0.01


def test_digits_are_bent_as_ever() -> None:
    """What the fitted map gave on digits before its likelihood was measured: recorded sums."""
    module = Gaussianised(64, 10)
    module.fit(Digits().statistics(10))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 64, generator=generator) * 0.8
    u, log_det = module(x, torch.logspace(-2.7, 1.9, 256), torch.randint(0, 11, (256,), generator=generator))
    assert u.double().abs().sum().item() == pytest.approx(26317.483431, rel=1e-5)
    assert log_det.double().sum().item() == pytest.approx(-10422.025518, rel=1e-5)


def test_checkpoints_from_before_the_measure_load() -> None:
    old = fitted("gaussianised").state_dict()
    del old["bend"]
    module = build("precondition", "gaussianised")(dim=D, num_classes=CLASSES).double()
    module.bend.fill_(0)
    wrapped = torch.nn.Sequential(module)
    wrapped.load_state_dict({f"0.{key}": value for key, value in old.items()})
    assert module.bend == 1
    torch.testing.assert_close(module(points(), SIGMA, CLASS), fitted("gaussianised")(points(), SIGMA, CLASS))
