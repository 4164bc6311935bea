"""Training objectives: their formulas, what they refuse, and that the true density minimises them."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flowdiff.denoisers.base import Perturbation
from flowdiff.denoisers.score_flow import ScoreFlow
from flowdiff.errors import ConfigError, FlowdiffError
from flowdiff.objectives.fokker_planck import rademacher
from flowdiff.objectives.losses import AnnealedMixture, Denoising, FokkerPlanck, Likelihood, Loss, Mixture
from tests.helpers.configs import build, choices
from tests.helpers.models import IMAGE, make, points, random_flow, randomise

every = pytest.mark.parametrize("name", choices("loss"))
WITH_LIKELIHOOD = [name for name in choices("loss") if build("loss", name).needs_likelihood]


def batch(n: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    x, sigma, labels = points(n)
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(7), dtype=x.dtype)
    assert labels is not None
    return 0.6 * x.tanh(), labels, sigma, eps, x


def noised(x0: Tensor, sigma: Tensor, eps: Tensor) -> Tensor:
    return x0 + sigma.view(-1, 1, 1, 1) * eps


def test_formulas() -> None:
    model = random_flow()
    x0, labels, sigma, eps, _ = batch()
    x = noised(x0, sigma, eps)
    d = math.prod(IMAGE)
    nll = -model.log_prob(x, sigma, labels) / d
    edm_weight = (sigma**2 + 0.6**2) / (sigma * 0.6) ** 2
    error = edm_weight * (model.denoise(x, sigma, labels) - x0).square().flatten(1).sum(1) / d
    scale = (sigma / 0.6) ** 0.7
    likelihood = Likelihood(power=0.7)(model, x0, labels, sigma, eps)
    torch.testing.assert_close(likelihood["loss"], scale * nll)
    torch.testing.assert_close(likelihood["nll"], nll)
    denoising = Denoising()(model, x0, labels, sigma, eps)
    torch.testing.assert_close(denoising["loss"], error, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(denoising["denoising"], denoising["loss"])
    torch.testing.assert_close(denoising["nll"], nll)
    mixture = Mixture(denoising_weight=0.4, power=0.7)(model, x0, labels, sigma, eps)
    torch.testing.assert_close(mixture["loss"], scale * nll + 0.4 * error, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(mixture["nll"], nll)
    torch.testing.assert_close(mixture["denoising"], error, rtol=1e-6, atol=1e-8)


@every
def test_per_sample_and_only_the_loss_has_a_gradient(name: str) -> None:
    model, loss = random_flow(), build("loss", name)
    x0, labels, sigma, eps, _ = batch()
    terms = loss(model, x0, labels, sigma, eps)
    assert all(term.shape == (6,) for term in terms.values())
    assert terms["loss"].requires_grad
    assert not any(term.requires_grad for key, term in terms.items() if key != "loss")
    alone = loss(model, x0[2:3], labels[2:3], sigma[2:3], eps[2:3])
    for key in terms:
        torch.testing.assert_close(alone[key], terms[key][2:3])


@every
def test_dropped_rows_train_the_null_class(name: str) -> None:
    model, loss = random_flow(), build("loss", name)
    x0, labels, sigma, eps, _ = batch()
    drop = torch.tensor([True, False, False, True, False, True])
    actual = loss(model, x0, labels, sigma, eps, Perturbation(drop))["loss"]
    null = loss(model, x0, None, sigma, eps)["loss"]
    kept = loss(model, x0, labels, sigma, eps)["loss"]
    torch.testing.assert_close(actual, torch.where(drop, null, kept))
    assert not torch.allclose(null, kept)


@pytest.mark.parametrize("name", WITH_LIKELIHOOD)
@pytest.mark.parametrize("groups", [{"conditioning": "concat"}, {"denoiser": "unet"}, {"activation": "tanh"}], ids=str)
def test_likelihood_is_refused_where_there_is_none(name: str, groups: dict[str, str]) -> None:
    leak = {"activation.leak": 0.0} if "activation" in groups else {}
    model = make((1, 8, 8), overrides=leak, **groups)
    with pytest.raises(FlowdiffError, match=f"loss={name} needs a normalised density.*loss=denoising"):
        build("loss", name).check(model)
    build("loss", "denoising").check(model)
    build("loss", name).check(make())


@pytest.mark.parametrize("groups", [{"conditioning": "concat"}, {"denoiser": "unet"}], ids=str)
def test_denoising_trains_what_has_no_likelihood(groups: dict[str, str]) -> None:
    model = make((1, 8, 8), **groups).double()
    randomise(model)
    x, sigma, labels = points(shape=(1, 8, 8))
    terms = Denoising()(model, x.tanh(), labels, sigma, torch.randn_like(x))
    terms["loss"].mean().backward()
    assert terms["loss"].isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_denoising_is_accurate_in_float32_at_low_noise() -> None:
    """D - x0 cancels at sigma = 0.002; the loss is made from the score without it."""
    double = random_flow()
    single = make().eval()
    single.load_state_dict(double.state_dict())
    x0, labels, _, eps, _ = batch()
    sigma = torch.full((6,), 0.002, dtype=torch.float64)
    expected = Denoising()(double, x0, labels, sigma, eps)["loss"]
    actual = Denoising()(single, x0.float(), labels, sigma.float(), eps.float())["loss"]
    torch.testing.assert_close(actual.double(), expected, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("name", choices("loss"))
def test_the_true_density_minimises_it(name: str) -> None:
    """On Gaussian data the exact model (a whitening) beats every model moved away from it."""
    model = make((2,), 0, precondition="gaussian", flow="linear", activation="identity").double()
    assert isinstance(model, ScoreFlow)
    generator = torch.Generator().manual_seed(0)
    model.precondition.sigma_data.fill_(0.5)
    model.precondition.eigenvalues.copy_(torch.tensor([0.4, 0.1]))
    x0 = torch.randn(8000, 2, generator=generator, dtype=torch.float64) * torch.tensor([0.4, 0.1]).sqrt()
    sigma = torch.full((8000,), 0.5, dtype=torch.float64)
    eps = torch.randn(8000, 2, generator=generator, dtype=torch.float64)
    loss = build("loss", name)
    with torch.no_grad():
        best = loss(model, x0, None, sigma, eps)["loss"].mean()
        for parameter in (model.flow.steps[0].log_diagonal, model.flow.steps[0].lower, model.flow.steps[1].layer.bias):
            for change in (-0.3, 0.3):
                parameter += change
                assert loss(model, x0, None, sigma, eps)["loss"].mean() > best + 1e-4
                parameter -= change


@pytest.mark.parametrize("progress", [0.0, 0.25, 1.0])
def test_the_weights_of_an_annealed_mixture(progress: float) -> None:
    model, (x0, labels, sigma, eps, _) = random_flow(), batch()
    loss = AnnealedMixture(likelihood_weight=[2.0, 0.4], denoising_weight=[0.0, 1.6])
    actual = loss(model, x0, labels, sigma, eps, progress=torch.tensor(progress))
    likelihood = Likelihood()(model, x0, labels, sigma, eps)["loss"]
    denoising = Denoising()(model, x0, labels, sigma, eps)["loss"]
    torch.testing.assert_close(actual["loss"], (2 - 1.6 * progress) * likelihood + 1.6 * progress * denoising)
    if progress == 1:  # what a validation takes
        torch.testing.assert_close(loss(model, x0, labels, sigma, eps)["loss"], actual["loss"])


def test_a_compiled_annealed_mixture_is_compiled_once() -> None:
    model = make(overrides={"flow.n_flows": 1}).double()
    randomise(model)
    (x0, labels, sigma, eps, _), loss, graphs = batch(), build("loss", "annealed_mixture"), []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = torch.compile(
        lambda progress: loss(model, x0, labels, sigma, eps, progress=progress)["loss"], fullgraph=True, backend=backend
    )
    for progress in (torch.tensor(0.0), torch.tensor(0.3), torch.tensor(1.0)):
        expected = loss(model, x0, labels, sigma, eps, progress=progress)["loss"]
        torch.testing.assert_close(compiled(progress), expected)
    assert len(graphs) == 1


def test_the_fokker_planck_term_is_the_residual_along_a_probe() -> None:
    model, (x0, labels, sigma, eps, _) = random_flow(), batch()
    actual = FokkerPlanck(fokker_planck_weight=0.7)(model, x0, labels, sigma, eps)
    x, level = noised(x0, sigma, eps).requires_grad_(), sigma.clone().requires_grad_()
    log_prob = model.log_prob(x, level, labels)
    score, by_sigma = torch.autograd.grad(log_prob.sum(), (x, level), create_graph=True)
    probe = rademacher(eps)
    (along,) = torch.autograd.grad((score * probe).sum(), x)
    curvature = (along * probe).flatten(1).sum(1)
    r = sigma * by_sigma - sigma**2 * (curvature + score.square().flatten(1).sum(1))
    squared = ((r / math.prod(IMAGE)) ** 2).detach()
    torch.testing.assert_close(actual["fokker_planck"], squared)
    torch.testing.assert_close(actual["nll"], (-log_prob / math.prod(IMAGE)).detach())
    likelihood = (sigma / 0.6) ** 0.5 * actual["nll"]
    torch.testing.assert_close(actual["loss"].detach(), likelihood + 0.7 * squared)


def test_a_diffused_gaussian_has_no_fokker_planck_term() -> None:
    """Its Hessian is diagonal, so that one probe of signs gives the Laplacian."""
    model = make((2,), 0, precondition="gaussian", flow="linear", activation="identity").double()
    model.precondition.eigenvalues.copy_(torch.tensor([0.4, 0.1]))
    x0, sigma, eps = torch.randn(3, 7, 2, dtype=torch.float64)
    found = FokkerPlanck()(model, x0, None, sigma[:, 0].abs() + 0.01, eps)
    assert found["fokker_planck"].max() < 1e-20
    model.precondition.kappa_power = 1.0
    with torch.no_grad():  # and any learned change makes the family of σ no diffusion
        model.flow.steps[0].log_diagonal.add_(0.2)
    assert FokkerPlanck()(model, x0, None, sigma[:, 0].abs() + 0.01, eps)["fokker_planck"].min() > 1e-8


@pytest.mark.parametrize(
    ("make_loss", "message"),
    [
        (lambda: AnnealedMixture(denoising_weight=[0.0]), r"denoising_weight=\[0.0\]: must be a list of 2 values"),
        (lambda: AnnealedMixture(likelihood_weight=[-1.0, 1.0]), "likelihood_weight"),
        (lambda: FokkerPlanck(fokker_planck_weight=0.0), "fokker_planck_weight=0.0: must be a number above 0"),
    ],
)
def test_mistakes(make_loss: Callable[[], Loss], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_loss()
