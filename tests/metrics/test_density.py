"""Metrics of the density against closed forms: likelihood by σ, AUROC, class posterior, derivatives."""

import math
from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from flowdiff.data.base import ImageData
from flowdiff.data.digits import Digits
from flowdiff.data.mnist import MNIST, FashionMNIST
from flowdiff.data.toy import Toy
from flowdiff.errors import ConfigError, FlowdiffError
from flowdiff.metrics.base import Evaluand, measure
from flowdiff.metrics.classes import ClassPosterior
from flowdiff.metrics.derivatives import Conservative, FokkerPlanck, jacobian
from flowdiff.metrics.likelihood import NLLBySigma
from flowdiff.metrics.ood import OODAuroc, auroc
from flowdiff.objectives.fokker_planck import rademacher, residual, slopes
from tests.helpers.analytic import GaussianDenoiser, MixtureDenoiser
from tests.helpers.configs import choices
from tests.helpers.measured import measured
from tests.helpers.models import make, points, random_flow, randomise, statistics
from tests.helpers.trained import checkpoint

MEANS = torch.tensor([[-1.0, 0.5], [1.0, 0.0], [0.2, -1.5]]).double()
FACTORS = torch.tensor([[[0.5, 0.0], [0.3, 0.2]], [[0.1, 0.0], [0.0, 0.6]], [[0.4, 0.0], [-0.3, 0.3]]]).double()
MIXTURE = MixtureDenoiser(MEANS, FACTORS @ FACTORS.mT, torch.tensor([0.5, 0.3, 0.2]).double())


class Drawn(ImageData):
    """Points of MIXTURE with their component as the class."""

    def __init__(self, n: int = 3000, num_classes: int = 3) -> None:
        super().__init__("drawn", (2,), num_classes, None)
        self.n = n

    def load(self) -> dict[str, tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        labels = torch.multinomial(MIXTURE.weights, self.n, True, generator=generator)
        z = torch.randn(self.n, 2, generator=generator).double()
        x = MEANS[labels] + (FACTORS[labels] @ z[:, :, None])[:, :, 0]
        return dict.fromkeys(("train", "val", "test"), (x.float(), labels))


class Rotating(nn.Module):
    """A denoiser D(x) = A x that is no gradient of anything, unless A is symmetric."""

    has_density, num_classes = False, 0

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)

    def forward(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        return (x.flatten(1) @ self.matrix.T).view_as(x)


def values(metric: Any, denoiser: Any, data: ImageData, **settings: Any) -> dict[str, Any]:
    results, skipped = measure({"m": metric}, Evaluand(denoiser, data, **settings))
    assert skipped == {}
    return {key: result.to_json() for key, result in results.items()}


# -- likelihood by σ --------------------------------------------------------------------------------------------


def test_nll_by_sigma_of_a_gaussian_is_its_entropy() -> None:
    mean, covariance = torch.tensor([0.3, -0.2]), torch.tensor([[0.5, 0.2], [0.2, 0.3]])
    x = torch.distributions.MultivariateNormal(mean, covariance).sample((20000,))

    class Normal(Drawn):
        def load(self) -> dict[str, tuple[Tensor, Tensor]]:
            return dict.fromkeys(("train", "val", "test"), (x, torch.zeros(len(x), dtype=torch.long)))

    truth = GaussianDenoiser(mean, covariance)
    truth.num_classes = 0
    found = values(NLLBySigma([0.1, 1, 30]), truth, Normal(num_classes=0), batch_size=7000)
    assert list(found) == ["nll_by_sigma/0.1", "nll_by_sigma/1", "nll_by_sigma/30"]
    for entry in found.values():
        noised = covariance + entry["sigma"] ** 2 * torch.eye(2)
        entropy = 0.5 * torch.logdet(2 * math.pi * math.e * noised).item() / 2
        assert entry["standard_error"] == pytest.approx(0.5 / math.sqrt(20000), rel=0.05)  # −log p/2 has variance 1/4
        assert abs(entry["value"] - entropy) < 4 * entry["standard_error"]
        assert entry["n"] == 20000 and entry["unit"] == "nats/dim"
    assert found["nll_by_sigma/30"]["noise"] == pytest.approx(found["nll_by_sigma/30"]["value"], abs=0.02)


# -- out of distribution ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [3, 10, 10**6])
def test_auroc_is_sklearns_with_ties_too(levels: int) -> None:
    generator = torch.Generator().manual_seed(levels)
    own = (torch.randn(57, generator=generator).double() * levels / 6 + levels / 20).round()
    other = (torch.randn(83, generator=generator).double() * levels / 6).round()
    labels = torch.cat([torch.ones(57), torch.zeros(83)]).numpy()
    value, error = auroc(own, other)
    assert value == pytest.approx(roc_auc_score(labels, torch.cat([own, other]).numpy()), abs=1e-12)
    # DeLong's error against the bootstrap's
    picks = [[torch.randint(n, (n,), generator=generator) for n in (57, 83)] for _ in range(400)]
    boot = torch.tensor([auroc(own[i], other[j])[0] for i, j in picks])
    assert error == pytest.approx(boot.std().item(), rel=0.15)


def test_auroc_at_the_ends() -> None:
    low, high = torch.tensor([-math.inf, 0.0, 1.0]).double(), torch.tensor([2.0, 3.0]).double()
    assert auroc(high, low) == (1.0, 0.0) and auroc(low, high) == (0.0, 0.0)
    assert auroc(low, low)[0] == 0.5
    assert math.isnan(auroc(low, torch.tensor([math.nan, 1.0]).double())[0])


def test_digits_against_transposed_digits() -> None:
    """A density that looks at one pixel only; its AUROC is that of the pixel against its mirror image."""

    class Pixel(nn.Module):
        has_density, normalized, num_classes = True, True, 0

        def log_prob(self, x: Tensor, sigma: float, labels: None) -> Tensor:
            return x[:, 0, 1, 5].double()

    data = Digits()
    found = values(OODAuroc(num_images=None), Pixel(), data, seed=3, batch_size=77)
    assert list(found) == ["ood_auroc"]
    k = data.images("test")[0]
    generator = torch.Generator().manual_seed(3)
    own = data.to_model(k, generator)[:, 0, 1, 5]
    order = torch.randperm(360, generator=torch.Generator().manual_seed(0))
    other = data.to_model(k.mT[order], generator)[:, 0, 1, 5]
    labels = torch.cat([torch.ones(360), torch.zeros(360)]).numpy()
    entry = found["ood_auroc"]
    assert entry["value"] == pytest.approx(roc_auc_score(labels, torch.cat([own, other]).numpy()), abs=1e-12)
    assert 0.7 < entry["value"] < 0.9 and entry["against"] == "transposed" and entry["n_against"] == 360
    assert entry["sigma"] == 0.002 and not entry["noised"]


def test_a_class_conditional_model_is_the_mixture_of_its_classes() -> None:
    class Square(Drawn):
        def out_of_distribution(self) -> dict[str, Any]:
            return {"shifted": lambda split: self.images(split)[0] + 0.5}

    uniform = MixtureDenoiser(MEANS, MIXTURE.covariances, torch.full((3,), 1 / 3).double())
    found = values(OODAuroc([0.5], num_images=400), MIXTURE, Square())

    class Unconditional(nn.Module):
        has_density, normalized, num_classes = True, True, 0

        def log_prob(self, x: Tensor, sigma: float, labels: None) -> Tensor:
            return uniform.log_prob(x, sigma)

    expected = values(OODAuroc([0.5], num_images=400), Unconditional(), Square())
    for key in ("ood_auroc", "ood_auroc/0.5"):
        assert found[key]["value"] == pytest.approx(expected[key]["value"], abs=1e-6)
        assert found[key]["value"] > 0.6 and found[key]["density"] == "mixture of classes"
    assert found["ood_auroc"]["value"] > found["ood_auroc/0.5"]["value"]


def test_other_sets_are_those_of_the_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="against=fashion_mnist: must be one of auto, transposed"):
        OODAuroc(against="fashion_mnist")(Evaluand(random_flow(shape=(1, 8, 8), num_classes=0), Digits()))
    assert "names no other images" in str(OODAuroc().unfit(Evaluand(MIXTURE, Toy(num_train=10, num_test=10))))
    k = torch.zeros(3, 1, 28, 28, dtype=torch.uint8)
    for cls, other, name in ((MNIST, FashionMNIST, "fashion_mnist"), (FashionMNIST, MNIST, "mnist")):
        monkeypatch.setattr(other, "load", lambda self: dict.fromkeys(("train", "val", "test"), (k + 7, k[:, 0, 0, 0])))
        sets = cls("elsewhere").out_of_distribution()
        assert list(sets) == [name, "transposed"] and torch.equal(sets[name]("test"), k + 7)
        monkeypatch.undo()
    with pytest.raises(FlowdiffError, match="nowhere: no FashionMNIST files"):
        MNIST("nowhere").out_of_distribution()["fashion_mnist"]("test")


# -- class posterior --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", ["uniform", "train"])
def test_class_posterior_is_bayes_rule(prior: str) -> None:
    data = Drawn()
    found = values(ClassPosterior([0.05, 1.5], num_images=None, prior=prior), MIXTURE, data)
    x0, noise, labels = Evaluand(MIXTURE, data).noised(None)
    weights = torch.full((3,), 1 / 3) if prior == "uniform" else data.images("train")[1].bincount() / 3000
    for sigma in (0.05, 1.5):
        covariances = MIXTURE.covariances + sigma**2 * torch.eye(2)
        normals = [torch.distributions.MultivariateNormal(m, c) for m, c in zip(MEANS, covariances, strict=True)]
        x = (x0 + sigma * noise).double()
        joint = torch.stack([n.log_prob(x) for n in normals], 1).exp() * weights
        posterior = joint / joint.sum(1, keepdim=True)
        entry = found[f"class_posterior/{sigma:g}"]
        assert entry["value"] == pytest.approx((posterior.argmax(1) == labels).double().mean().item(), abs=1e-3)
        log_loss = -posterior[torch.arange(3000), labels].log().mean().item()
        assert entry["log_loss"] == pytest.approx(log_loss, rel=1e-4) and entry["prior"] == prior
        assert entry["standard_error"] == pytest.approx(math.sqrt(entry["value"] * (1 - entry["value"]) / 3000))
    assert found["class_posterior/0.05"]["value"] > 0.95 > 0.8 > found["class_posterior/1.5"]["value"] > 0.4


# -- derivatives ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exact_dims", [64, 0])
def test_asymmetry_of_a_matrix(exact_dims: int) -> None:
    matrix = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) / 8
    metric = Conservative([0.5], num_images=60, exact_dims=exact_dims, num_probes=6)
    jacobian = (matrix.double() - torch.eye(64)) / 0.25
    expected = ((jacobian - jacobian.T).norm() / jacobian.norm()).item()
    entry = values(metric, Rotating(matrix), Digits())["conservative/0.5"]
    assert entry["value"] == pytest.approx(expected, rel=0.02 if exact_dims == 0 else 1e-6)
    assert entry["num_probes"] == ("exact" if exact_dims else 6) and entry["rms"] > 1
    symmetric = values(metric, Rotating(matrix + matrix.T), Digits())["conservative/0.5"]
    assert symmetric["value"] < 1e-12


@pytest.mark.parametrize("exact_dims", [64, 0])
@pytest.mark.parametrize("flow", choices("flow"))
def test_a_flow_has_a_gradient_for_its_score(flow: str, exact_dims: int) -> None:
    model = random_flow(flow)
    metric = Conservative([0.3], exact_dims=exact_dims)
    x, _, labels = points()
    above, below = metric.squares(model, x, 0.3, labels, [x.sign()] if exact_dims == 0 else [])
    assert (above.sqrt() < 1e-10 * below.sqrt()).all() and (below > 1).all()


@pytest.mark.slow
def test_a_free_network_has_none() -> None:
    model = make((1, 8, 8), 10, denoiser="unet").double()
    model.fit(statistics((1, 8, 8), 10))
    randomise(model)
    exact = values(Conservative([0.3], num_images=4), model, Digits())["conservative/0.3"]["value"]
    assert exact > 0.1
    probed = Conservative([0.3], num_images=4, exact_dims=0, num_probes=100)
    assert values(probed, model, Digits())["conservative/0.3"]["value"] == pytest.approx(exact, rel=0.1)


def test_slopes_and_jacobian_are_autograds() -> None:
    model = random_flow()
    x, sigma, labels = points()
    probe = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    found = slopes(lambda points, levels: model.log_prob(points, levels, labels), x, sigma, probe)
    inner, level = x.clone().requires_grad_(), sigma.clone().requires_grad_()
    log_prob = model.log_prob(inner, level, labels)
    score, by_sigma = torch.autograd.grad(log_prob.sum(), (inner, level), create_graph=True)
    along = torch.autograd.grad((score * probe).sum(), inner)[0]
    torch.testing.assert_close(found.log_prob, log_prob.detach())
    torch.testing.assert_close((found.score, found.by_sigma), (score.detach(), by_sigma.detach()))
    torch.testing.assert_close(found.curvature, (along * probe).flatten(1).sum(1))
    step = 1e-6 * sigma
    rise = model.log_prob(x, sigma + step, labels) - model.log_prob(x, sigma - step, labels)
    torch.testing.assert_close(sigma * found.by_sigma, rise / 2e-6, rtol=1e-4, atol=1e-4)
    hessian = jacobian(lambda points: model.score(points, sigma, labels), x)
    flat = probe.flatten(1)
    torch.testing.assert_close(found.curvature, (flat[:, None] @ hessian @ flat[:, :, None])[:, 0, 0])


@pytest.mark.parametrize("sigma", [0.002, 0.3, 5.0, 80.0])
def test_a_mixture_solves_the_equation(sigma: float) -> None:
    entry = values(FokkerPlanck([sigma]), MIXTURE, Drawn())[f"fokker_planck/{sigma:g}"]
    assert entry["value"] < 1e-8 and entry["rms_of_whole"] > 1e-4 and entry["num_probes"] == "exact"
    labels = torch.arange(5) % 3
    x = MEANS[labels] + sigma * torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).double()
    levels = torch.full((5,), sigma).double()
    traces = [slopes(MIXTURE.log_prob, x, levels, e.expand(5, 2)) for e in torch.eye(2).double()]
    r = residual(traces[0].by_sigma, traces[0].score, traces[0].curvature + traces[1].curvature, levels)
    assert (r.abs() < 1e-8 * (1 + (sigma * traces[0].by_sigma).abs())).all()


class WrongSpread(MixtureDenoiser):
    """The mixture, its σ taken for 1.2 σ: each density is one, but the family is no diffusion in σ."""

    def log_prob(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        return super().log_prob(x, torch.as_tensor(sigma, dtype=x.dtype) * 1.2, labels)

    def score(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        return super().score(x, sigma * 1.2, labels)


def test_a_family_that_is_no_diffusion_is_found_out() -> None:
    """p(x; 1.2 σ) has ∂σ log p = 1.44 σ (Δ log p + |∇ log p|²): its residual is 0.44/1.44 of the whole."""
    wrong = WrongSpread(MEANS, MIXTURE.covariances, MIXTURE.weights)
    exact = values(FokkerPlanck([0.5], num_images=None), wrong, Drawn())["fokker_planck/0.5"]
    assert exact["value"] == pytest.approx(0.44 / 1.44, rel=1e-6)
    probed = FokkerPlanck([0.5], num_images=None, exact_dims=0, num_probes=4)
    entry = values(probed, wrong, Drawn())["fokker_planck/0.5"]
    assert entry["value"] == pytest.approx(0.44 / 1.44, rel=0.03) and entry["num_probes"] == 4


def test_probes_have_independent_signs() -> None:
    eps = torch.randn(20000, 6, generator=torch.Generator().manual_seed(0))
    v = rademacher(eps)
    assert set(v.unique().tolist()) == {-1.0, 1.0}
    assert (v.T @ v / 20000 - torch.eye(6)).abs().max() < 0.03
    given = (eps > 0).all(1)  # 1/64 of the rows: still independent signs
    assert (v[given].T @ v[given] / given.sum() - torch.eye(6)).abs().max() < 0.25


# -- what they refuse, and the command line ---------------------------------------------------------------------


def test_what_does_not_apply() -> None:
    unconditional, unet = random_flow(num_classes=0, shape=(1, 8, 8)), make((1, 8, 8), denoiser="unet")
    metrics = {
        "nll": NLLBySigma([1.0]),
        "ood": OODAuroc(),
        "class": ClassPosterior([1.0]),
        "fp": FokkerPlanck([1.0]),
    }
    for name, metric in metrics.items():
        assert metric.unfit(Evaluand(unet, Digits())) == "the denoiser has no density", name
        assert ("unconditional" in str(metric.unfit(Evaluand(unconditional, Digits())))) == (name == "class")
    assert Conservative([1.0]).unfit(Evaluand(unet, Digits())) is None


@pytest.mark.parametrize(
    ("make_metric", "message"),
    [
        (lambda: NLLBySigma([]), r"sigmas=\[\]: must be a list"),
        (lambda: NLLBySigma([0.0]), r"sigmas"),
        (lambda: ClassPosterior([1.0], num_images=0), "num_images=0"),
        (lambda: ClassPosterior([1.0], prior="flat"), "prior=flat: must be one of uniform, train"),
        (lambda: Conservative([1.0], num_probes=0), "num_probes=0"),
        (lambda: FokkerPlanck([1.0], num_probes=1), "num_probes=1"),
        (lambda: OODAuroc([-1.0]), "sigmas"),
    ],
)
def test_mistakes(make_metric: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_metric()


@pytest.mark.slow
def test_the_command_line(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    names = "bits_per_dim,nll_by_sigma,ood_auroc,class_posterior,conservative,fokker_planck"
    few = [f"metrics.{name}.sigmas=[0.1,1]" for name in names.split(",")[1:]]
    found = measured(tmp_path, f"ckpt_path={checkpoint('digits')}", f"metrics=[{names}]", *few)
    for name in names.split(",")[1:]:
        assert {f"{name}/0.1", f"{name}/1"} <= set(found)
    assert found["class_posterior/0.1"]["value"] > 0.5 and found["ood_auroc"]["value"] > 0.9
    assert found["conservative/1"]["value"] < 1e-12 < 1e-4 < found["fokker_planck/1"]["value"] < 1
    out = capsys.readouterr().out
    assert "± s.e." in out and f"{found['bits_per_dim']['standard_error']:.2g}" in out
    found = measured(tmp_path / "unet", f"ckpt_path={checkpoint('unet')}", f"metrics=[{names}]", *few)
    assert set(found) == {"conservative/0.1", "conservative/1"} and found["conservative/0.1"]["value"] > 1e-3
    assert "skipped fokker_planck: the denoiser has no density" in capsys.readouterr().out
