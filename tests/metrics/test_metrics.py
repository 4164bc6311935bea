"""Metrics against numbers known by formula, on denoisers and samplers that are known in closed form."""

import json
import math

import numpy as np
import pytest
import scipy.linalg
import torch

from flowdiff.data.base import ImageData
from flowdiff.data.digits import Digits
from flowdiff.data.statistics import DataStatistics
from flowdiff.data.toy import Toy
from flowdiff.errors import ConfigError, FlowdiffError
from flowdiff.metrics import class_filter
from flowdiff.metrics.base import Evaluand, Metric, Result, measure
from flowdiff.metrics.denoising import Denoising
from flowdiff.metrics.extractors.extractor import Extractor
from flowdiff.metrics.frechet import FrechetDistance, Recognised, frechet_distance, moments
from flowdiff.metrics.likelihood import BitsPerDim, LogLikelihood, bits_per_dim
from flowdiff.samplers.batched import Drawn
from tests.helpers.analytic import GaussianDenoiser


class UniformDenoiser:
    """The uniform density on [−1, 1]^d; it denoises to zero. With classes only where told so."""

    has_density, normalized = True, True

    def __init__(self, num_classes=0):
        self.num_classes = num_classes
        self.largest_batch = 0
        self.labels = []

    def log_prob(self, x, sigma, labels=None):
        self.largest_batch = max(self.largest_batch, len(x))
        self.labels.append(labels)
        assert not torch.is_grad_enabled()
        inside = (x.flatten(1).abs() <= 1).all(1)
        return torch.where(inside, -math.log(2.0) * x[0].numel(), -math.inf)

    def __call__(self, x, sigma, labels=None):
        return torch.zeros_like(x)


class Noise(ImageData):
    """Independent uniform levels."""

    def __init__(self, levels):
        super().__init__("noise", (1, 4, 4), 0, levels)

    def load(self):
        k = torch.randint(0, self.levels, (100, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        return dict.fromkeys(("train", "val", "test"), (k, torch.zeros(100, dtype=torch.long)))


class Copies:
    """A "model" whose samples are training images of the class asked for: it should score as real images do."""

    def __init__(self, data):
        self.data = data
        self.calls = []

    def __call__(self, n, labels, seed):
        self.calls.append(n)
        k, y = self.data.images("train")
        rows = range(n) if labels is None else [int((y == c).nonzero()[i % 15]) for i, c in enumerate(labels)]
        return Drawn(self.data.to_centres(k[list(rows)]), conditions={"sampler": "copies", "nfe": 0})


@pytest.mark.parametrize("levels", (2, 17, 256))
def test_bits_of_the_uniform_density_are_log2_of_the_levels(levels):
    denoiser = UniformDenoiser()
    results, skipped = measure(
        {"b": BitsPerDim()}, Evaluand(denoiser, Noise(levels), batch_size=32, weights="raw", seed=3)
    )
    entry = results["bits_per_dim"].to_json()
    assert entry["value"] == pytest.approx(math.log2(levels), abs=1e-6) and skipped == {}
    assert entry["n"] == 100 and entry["split"] == "test" and entry["weights"] == "raw" and entry["seed"] == 3
    assert entry["uniform"] == math.log2(levels) and entry["standard_error"] == pytest.approx(0, abs=1e-6)
    assert denoiser.largest_batch == 32


def test_bits_of_a_normal_in_numpy():
    # N(mean, s²) in each pixel: the identity flow behind an affine whitening
    data = Digits()
    denoiser = GaussianDenoiser(torch.full((64,), -0.4), 0.3 * torch.eye(64), (1, 8, 8))
    denoiser.num_classes = 0
    result = BitsPerDim()(Evaluand(denoiser, data, sigma_min=0.1, seed=5))["bits_per_dim"]
    x = data.to_model(data.images("test")[0], torch.Generator().manual_seed(5)).double().numpy()
    variance = 0.3 + 0.1**2
    log_density = -((x + 0.4) ** 2) / 2 / variance - 0.5 * np.log(2 * np.pi * variance)
    per_level = log_density + np.log(2 / 17)  # density of the level k + u = (x + 1) 17/2
    assert result.value == pytest.approx(-np.mean(per_level) / np.log(2), rel=1e-5)
    assert result.n == 360


def test_bits_per_dim_by_hand():
    # density 1 over a cube of width 2 would be 2^d too much; density (1/2)^d is uniform: log2 L
    assert bits_per_dim(torch.tensor([-3 * math.log(2)]), 3, 256).item() == pytest.approx(8)
    assert bits_per_dim(torch.tensor([0.0]), 3, 256).item() == pytest.approx(7)


def test_bits_per_dim_gives_labels_to_a_model_with_classes():
    data, denoiser = Digits(), UniformDenoiser(num_classes=10)
    measure({"b": BitsPerDim()}, Evaluand(denoiser, data))
    assert torch.equal(torch.cat(denoiser.labels), data.images("test")[1])
    unconditional = UniformDenoiser()
    measure({"b": BitsPerDim()}, Evaluand(unconditional, data))
    assert unconditional.labels == [None]


def test_the_wiener_filter_itself_has_ratio_one():
    data = Digits()
    k, labels = data.images("train")
    statistics = DataStatistics.from_data(data.to_model(k, torch.Generator().manual_seed(0)), labels, 10)

    class Wiener:
        num_classes = 10

        def __call__(self, x, sigma, labels=None):
            return statistics.wiener(x, sigma, labels)

    results, _ = measure({"d": Denoising()}, Evaluand(Wiener(), data, statistics, batch_size=100))
    levels = ("0.05", "0.1", "0.2", "0.5", "1", "2", "5")
    assert list(results) == [f"denoising_{kind}/{s}" for kind in ("ratio", "filter") for s in levels]
    ratios = list(results.values())[:7]
    for result in ratios:
        assert result.value == pytest.approx(1, abs=1e-6) and result.n == 360
    rmse = [result.conditions["rmse_wiener"] for result in ratios]
    assert rmse == sorted(rmse) and rmse[0] < 0.05  # denoising less noise is easier, and better than not denoising


def test_a_linear_filter_that_is_better_than_the_reference():
    """The row of the filter with a covariance a class: of digits as another program has it, its shrinkage as
    scikit-learn's, its ends as they must be."""
    from sklearn.covariance import ledoit_wolf_shrinkage

    data = Digits()
    model = Evaluand(UniformDenoiser(10), data, data.statistics(10))
    results, _ = measure({"d": Denoising()}, model)
    found = {key: result.value for key, result in results.items() if key.startswith("denoising_filter/")}
    levels = ("0.05", "0.2", "0.5", "1", "2", "5")
    measured = [0.978, 0.924, 0.893, 0.910, 0.949, 0.986]
    assert [found[f"denoising_filter/{s}"] for s in levels] == pytest.approx(measured, abs=2e-3)
    entry = results["denoising_filter/1"].to_json()
    assert entry["of_model"] is False and entry["better"] == "lower" and "plotted" not in entry
    assert entry["value"] == pytest.approx(entry["rmse"] / entry["rmse_wiener"])
    # σ → 0 gives x back, σ → ∞ the mean of the class: as the reference does
    far, _ = measure({"d": Denoising([1e-4, 1e4])}, model)
    assert [far[f"denoising_filter/{s}"].value for s in ("0.0001", "10000")] == pytest.approx([1, 1], abs=1e-3)

    rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).double() * torch.arange(1, 7)
    isotropic = rows.square().mean() * torch.eye(6, dtype=rows.dtype)  # scikit-learn's target
    own = rows.T @ rows / 50
    share = ledoit_wolf_shrinkage(rows.numpy(), assume_centered=True)
    torch.testing.assert_close(class_filter.shrunk(rows, isotropic), share * isotropic + (1 - share) * own)
    assert torch.equal(class_filter.shrunk(rows[:1], isotropic), isotropic)


def test_where_there_is_no_filter_of_the_classes(monkeypatch):
    data = Digits()
    told, untold = (Evaluand(UniformDenoiser(k), data, data.statistics(10)) for k in (10, 0))
    assert class_filter.fits(told) and not class_filter.fits(untold)
    assert [key for key in Denoising([1]).keys(untold) if "filter" in key] == []
    monkeypatch.setattr(class_filter, "MOST_WORK", 10 * 64**3 - 1)
    assert list(measure({"d": Denoising([1])}, told)[0]) == ["denoising_ratio/1"]


def test_the_error_of_a_denoiser_that_says_zero():
    data = Digits()
    k, labels = data.images("train")
    statistics = DataStatistics.from_data(data.to_centres(k), labels, 10)
    result = Denoising([0.5])(Evaluand(UniformDenoiser(), data, statistics, seed=7))["denoising_ratio/0.5"]
    generator = torch.Generator().manual_seed(7)
    x0 = data.to_model(data.images("test")[0][Evaluand(None, data).rows(360)], generator)
    assert result.conditions["rmse"] == pytest.approx(x0.square().mean().sqrt().item(), rel=1e-6)
    # an unconditional model is compared with the unconditional filter
    x = x0 + 0.5 * torch.randn(x0.shape, generator=generator)
    wiener = (statistics.wiener(x, torch.full((360,), 0.5)) - x0).square().mean().sqrt().item()
    assert result.conditions["rmse_wiener"] == pytest.approx(wiener, rel=1e-5)
    assert result.value == pytest.approx(result.conditions["rmse"] / result.conditions["rmse_wiener"])


def test_frechet_distance_against_scipy():
    rng = np.random.RandomState(0)
    a = rng.randn(300, 12) @ rng.randn(12, 12) + rng.randn(12)
    b = rng.randn(200, 12) @ rng.randn(12, 12)
    c1, c2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(c1 @ c2).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c1 + c2 - 2 * root)
    assert frechet_distance(moments(torch.from_numpy(a)), moments(torch.from_numpy(b))) == pytest.approx(
        expected, rel=1e-8
    )
    assert frechet_distance(moments(torch.from_numpy(a)), moments(torch.from_numpy(a))) == pytest.approx(0, abs=1e-8)


def test_frechet_distance_of_fewer_images_than_features():
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    a, b = (torch.randn(n, 30, generator=torch.Generator().manual_seed(n)).double() for n in (10, 25))
    theirs = fid_statistics_to_metric(fid_features_to_statistics(a), fid_features_to_statistics(b), False)
    # exactly singular covariances: torch-fidelity's eigenvalues are rounding noise to the power 1/2
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)


def test_copies_of_training_images_score_as_real_images():
    data = Digits()
    copies = Copies(data)
    model = Evaluand(UniformDenoiser(num_classes=10), data, sample=copies, seed=4)
    results, skipped = measure({"fd": FrechetDistance(), "recognised": Recognised()}, model)
    assert skipped == {} and copies.calls == [360]
    assert set(results) == {"fd_mlp_digits", "fd_mlp_digits/real", "recognised", "recognised/real"}
    assert 0 < results["fd_mlp_digits"].value < 3 * results["fd_mlp_digits/real"].value
    assert results["recognised"].value > 0.98 and results["recognised/real"].value > 0.98
    for key in ("recognised", "recognised/real"):
        share, error = results[key].value, results[key].conditions["standard_error"]
        assert error == pytest.approx(math.sqrt(share * (1 - share) / 360))
    entry = json.loads(json.dumps(results["fd_mlp_digits"].to_json()))
    assert entry["n"] == 360 and entry["sampler"] == "copies" and entry["nfe"] == 0 and entry["seed"] == 4
    assert entry["extractor"] == "mlp_digits" and entry["reference"] == "train" and entry["weights"] == "ema"


def test_the_reference_is_kept_for_the_same_data_only(monkeypatch):
    data, metric, seen = Digits(), FrechetDistance(num_samples=50), []
    features = Extractor.features
    monkeypatch.setattr(Extractor, "features", lambda self, images: seen.append(len(images)) or features(self, images))

    def run(data):
        seen.clear()
        return metric(Evaluand(UniformDenoiser(10), data, sample=Copies(data)))["fd_mlp_digits/real"].value

    first = run(data)
    assert sorted(seen) == [50, 50, 1257]
    assert run(data) == first and seen == [50, 50]
    swapped = Digits()
    swapped._splits["train"] = data.images("val")
    assert run(swapped) != first and sorted(seen) == [50, 50, 180]


def test_noise_scores_badly():
    data = Digits()

    def sample(n, labels, seed):
        return Drawn(torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1)

    model = Evaluand(UniformDenoiser(10), data, sample=sample)
    results, _ = measure({"fd": FrechetDistance(), "recognised": Recognised()}, model)
    assert results["fd_mlp_digits"].value > 20 * results["fd_mlp_digits/real"].value
    assert results["recognised"].value < 0.3


def test_samples_that_are_not_finite_are_counted():
    data = Digits()

    def sample(n, labels, seed):
        drawn = Copies(data)(n, labels, seed)
        drawn.x[3, 0, 0, 0], drawn.x[5] = math.nan, math.inf
        return drawn

    result = FrechetDistance(num_samples=50)(Evaluand(UniformDenoiser(10), data, sample=sample))
    assert result["fd_mlp_digits"].conditions["nonfinite"] == 2 and result["fd_mlp_digits"].n == 50


def test_samples_are_drawn_once_for_the_largest_number():
    data = Digits()
    copies = Copies(data)
    model = Evaluand(UniformDenoiser(10), data, sample=copies)
    measure({"a": FrechetDistance(num_samples=20), "b": Recognised(num_samples=50)}, model)
    assert copies.calls == [50]
    _, labels = model.samples(50)
    assert torch.equal(model.samples(20)[1], labels[:20])
    assert torch.equal(model.real(50)[1], labels)
    # more samples than the split has images: the labels go round
    assert torch.equal(model.rows(800)[:720], model.rows(360).repeat(2))


def test_metrics_that_do_not_apply_say_why():
    toy = Evaluand(UniformDenoiser(), Toy(num_train=10, num_test=10), sample=lambda n, labels, seed: None)
    metrics = {"bits": BitsPerDim(), "d": Denoising(), "fd": FrechetDistance(), "r": Recognised()}
    results, skipped = measure(metrics, toy)
    assert results == {} and set(skipped) == set(metrics)
    assert "no levels" in skipped["bits"] and "no small extractor" in skipped["fd"]
    assert "unconditional" in skipped["r"] and "statistics" in skipped["d"]

    class UNet(UniformDenoiser):
        has_density = False

    class Leaky(UniformDenoiser):
        normalized = False

    for denoiser, reason in ((UNet(), "no density"), (Leaky(), "not normalised")):
        assert reason in measure({"b": BitsPerDim()}, Evaluand(denoiser, Digits()))[1]["b"]
    assert "toy" in measure({"l": LogLikelihood()}, Evaluand(UniformDenoiser(), Digits()))[1]["l"]
    assert "no sampler" in measure({"fd": FrechetDistance()}, Evaluand(UniformDenoiser(10), Digits()))[1]["fd"]


def test_log_likelihood_of_the_truth_and_of_the_uniform_density():
    data = Toy("checkerboard", num_train=10, num_test=2000)

    class Truth(UniformDenoiser):
        def log_prob(self, x, sigma, labels=None):
            return data.log_prob(x)

    results, _ = measure({"l": LogLikelihood()}, Evaluand(Truth(), data))
    assert results["log_likelihood_gap"].value == pytest.approx(0, abs=1e-12)
    assert results["log_likelihood"].value == pytest.approx(-math.log(2))
    assert results["log_likelihood"].conditions["entropy"] == pytest.approx(math.log(2))
    uniform, _ = measure({"l": LogLikelihood()}, Evaluand(UniformDenoiser(), data))
    # uniform on the whole board: KL is the logarithm of twice the area
    assert uniform["log_likelihood_gap"].value == pytest.approx(-math.log(2))
    assert uniform["log_likelihood_gap"].n == 2000


def test_entropy_given_the_class():
    # eight Gaussians far apart: knowing which one is worth log 8 nats
    data = Toy("eight_gaussians", conditional=True, num_train=10, num_test=4000)
    results, _ = measure({"l": LogLikelihood()}, Evaluand(UniformDenoiser(8), data))
    gaussian = math.log(2 * math.pi * math.e * 0.08**2)
    assert results["log_likelihood"].conditions["entropy"] == pytest.approx(gaussian, abs=0.05)


def test_a_value_that_is_not_finite_is_null_in_json():
    said = {"unit": None, "better": None}  # by no metric: nothing is known of it
    assert Result(math.nan, 3, {"split": "test"}).to_json() == {"value": None, "n": 3, "split": "test", **said}


def test_number_of_samples_is_checked():
    with pytest.raises(ConfigError, match="num_samples=0"):
        FrechetDistance(num_samples=0)
    with pytest.raises(ConfigError, match="extractor=vgg: must be one of mlp_digits"):
        Extractor("vgg")


def test_a_metric_that_fails_does_not_lose_the_others() -> None:
    class Broken(Metric):
        def __call__(self, model: Evaluand) -> dict[str, Result]:
            raise FlowdiffError("no weights here")

    metrics, failed = {"x": Broken(), "b": BitsPerDim()}, {}
    results, _ = measure(metrics, Evaluand(UniformDenoiser(10), Digits()), failed)
    assert list(results) == ["bits_per_dim"]
    assert str(failed["x"]) == "no weights here"
    with pytest.raises(FlowdiffError, match="no weights"):
        measure(metrics, Evaluand(UniformDenoiser(10), Digits()))
