"""The truth whose best denoiser is known, and what is trained towards it."""

from pathlib import Path

import pytest
import torch
from torch import distributions as D

from experiments.denoising_gap import arms, truths
from experiments.denoising_gap.__main__ import main
from experiments.denoising_gap.mixture import ClassMixture
from flowdiff.commands.train import request_of
from flowdiff.objectives.losses import Denoising, Noised
from flowdiff.objectives.noise import LogNormal


@pytest.fixture(scope="module")
def mixture() -> ClassMixture:
    """Digits', in float64."""
    return ClassMixture.of_images(truths.digits())


@pytest.fixture(scope="module")
def truth() -> truths.MixtureTruth:
    """Digits'."""
    return truths.MixtureTruth(truths.digits())


def points(mixture: ClassMixture, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x (n, d) at levels from 0.01 to 5, the levels and the labels."""
    torch.manual_seed(0)
    x0, labels = mixture.sample(n)
    sigma = torch.logspace(-2, 0.7, n, dtype=x0.dtype)
    return x0 + sigma[:, None] * torch.randn_like(x0), sigma, labels


def of_torch(mixture: ClassMixture, sigma: float, rows: torch.Tensor) -> D.MixtureSameFamily:
    """The components `rows` by torch."""
    values, basis = mixture.eigenvalues[rows] + sigma**2, mixture.eigenvectors[rows]
    covariances = (basis * values[:, None]) @ basis.mT
    parts = D.MultivariateNormal(mixture.means[rows], covariances)
    return D.MixtureSameFamily(D.Categorical(mixture.weights[rows]), parts)


@pytest.mark.parametrize("told", [True, False])
def test_log_p_is_that_of_torch(mixture: ClassMixture, told: bool) -> None:
    x, sigma, labels = points(mixture, 24)
    found = mixture.score_and_log_prob(x, sigma, labels if told else None)[1]
    for i in range(len(x)):
        rows = mixture.classes == labels[i] if told else mixture.classes >= 0
        expected = of_torch(mixture, float(sigma[i]), rows).log_prob(x[i])
        assert found[i].item() == pytest.approx(expected.item(), rel=0, abs=1e-6)


@pytest.mark.parametrize("told", [True, False])
def test_the_best_denoiser_is_by_the_gradient_of_log_p(mixture: ClassMixture, told: bool) -> None:
    x, sigma, labels = points(mixture, 24)
    x.requires_grad_()
    score, log_prob = mixture.score_and_log_prob(x, sigma, labels if told else None)
    (expected,) = torch.autograd.grad(log_prob.sum(), x)
    assert torch.allclose(score, expected, rtol=1e-9, atol=1e-9)
    best = mixture.denoise(x, sigma, labels if told else None)
    assert torch.allclose(best, x + sigma[:, None] ** 2 * expected, rtol=0, atol=1e-9)


def test_a_density_in_the_plane_integrates_to_one_and_its_samples_have_its_moments() -> None:
    torch.manual_seed(0)
    data = torch.randn(300, 2, dtype=torch.float64) * torch.tensor([0.5, 0.1], dtype=torch.float64)
    labels = torch.arange(300) % 3
    plane = ClassMixture.fit(data + labels[:, None], labels, 2, 0.01)
    side = torch.linspace(-4, 6, 1000, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    for c in range(3):
        sigma, classes = torch.full((len(grid),), 0.1, dtype=torch.float64), torch.full((len(grid),), c)
        density = plane.score_and_log_prob(grid, sigma, classes)[1].exp()
        assert density.sum().item() * (side[1] - side[0]).item() ** 2 == pytest.approx(1, abs=1e-6)
    for lacking in (0.0, 0.01):
        x0, classes = plane.sample(200_000, lacking)
        for c in range(3):
            rows, own = plane.classes == c, x0[classes == c]
            assert torch.allclose(own.mean(0), of_torch(plane, 0, rows).mean, atol=0.02)
            assert torch.allclose(own.var(0) + lacking, of_torch(plane, 0, rows).variance, atol=0.01)


def test_a_cluster_of_one_image_has_its_class_covariance() -> None:
    x = torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.0, 0.2], [9.0, 9.0]])
    found = ClassMixture.fit(x, torch.zeros(4, dtype=torch.int64), 2, 0.01)
    assert len(found.weights) == 2 and found.eigenvalues.min() >= 0.01 - 1e-12


@pytest.mark.parametrize("sigma", arms.SIGMAS)
def test_no_denoiser_is_better_than_the_best(truth: truths.MixtureTruth, sigma: float) -> None:
    x, x0, levels, labels = truths.noised(truth, sigma)
    best = truth.denoise(x, levels, labels)
    least = (best - x0).square().flatten(1).sum(1)
    fresh = arms.Training(request_of("flow=linear", "base=normal"), truth, False, 1.0).denoiser
    for other in (truth.statistics().wiener, fresh, lambda x, *_: best + 0.05 * x, lambda *_: 0.97 * best):
        with torch.no_grad():
            theirs = other(x, levels, labels)
        more = (theirs - x0).square().flatten(1).sum(1) - least
        assert more.mean() > 0
        apart = (theirs - best).square().flatten(1).sum(1)
        error = (more - apart).std() / len(x) ** 0.5
        assert abs((more - apart).mean()) < 4 * error, "|D − x0|² is |D* − x0|² + |D − D*|² on average"


def test_what_is_held_out_is_the_same_for_all_and_moves_no_generator(truth: truths.MixtureTruth) -> None:
    torch.manual_seed(1)
    first, other, after = truths.noised(truth, 0.5)[0], truths.noised(truth, 0.5, trained_on=True)[0], torch.rand(1)
    torch.manual_seed(1)
    assert after == torch.rand(1) and torch.equal(first, truths.noised(truth, 0.5)[0])
    assert len(first) == len(other)


def test_a_target_in_the_place_of_the_image_keeps_x(truth: truths.MixtureTruth) -> None:
    torch.manual_seed(0)
    x0, labels = truth.draw(16)
    batch = Noised(x0, labels, LogNormal()(16), torch.randn_like(x0))
    moved = arms.towards(truth, batch)
    assert torch.allclose(moved.x, batch.x, atol=1e-5)

    class Best(torch.nn.Module):
        sigma_data = torch.tensor(0.5)

        def forward(self, x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor, _: object) -> torch.Tensor:
            return truth.denoise(x, sigma, labels)

    assert Denoising().terms(Best(), batch)["loss"].mean() > 0.05  # type: ignore[arg-type]
    assert Denoising().terms(Best(), moved)["loss"].max() < 1e-6  # type: ignore[arg-type]


def test_drawn_once_is_drawn_once_but_for_dequantisation() -> None:
    few = truths.MixtureTruth(truths.digits(), images=3)
    x0 = few.draw(500)[0].flatten(1)
    apart = torch.cdist(x0, few.images[0]).min(1).values.square() / x0.shape[1]  # type: ignore[index]
    assert apart.mean().item() == pytest.approx(few.noise_variance, rel=0.05)


def test_a_trained_network_as_the_truth_is_shown_images_without_limit() -> None:
    data = truths.digits()
    network = arms.Training(
        request_of("denoiser=unet", "loss=denoising"), truths.MixtureTruth(data), True, 1.0
    ).denoiser
    truth = truths.UNetTruth(data, network)
    x0, labels = truth.draw(64)
    own = data.to_model(data.images("train")[0]).flatten(1)
    apart = torch.cdist(x0.flatten(1), own).min(1).values
    assert x0.shape == (64, *data.shape) and labels.shape == (64,)
    assert 0.4 < (apart > 1.2).float().mean() < 0.95, "most are augmented, a share isn't"
    assert not truth.denoise(x0, torch.ones(64), labels).requires_grad
    assert arms.excess(network, truth, 0.5) == arms.excess(network, truth, 0.5, trained_on=True) == 0


def test_an_arm_is_measured_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--arms", "mixture-filter,mixture-unet-iii", "--seconds", "0.2", "--out", str(tmp_path)]
    assert main(words) == 0
    first = (tmp_path / "truth.md").read_text()
    assert first.count("mixture") == 2 and "| unet | iii |" in first
    capsys.readouterr()
    assert main(words) == 0 and capsys.readouterr().out.count("done already") == 2
    assert (tmp_path / "truth.md").read_text() == first
