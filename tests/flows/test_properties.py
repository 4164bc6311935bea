"""What must hold for every flow, activation and precondition found in conf/, in float64, with non-zero random weights.

log-determinant = log|det| of the autograd Jacobian          inverse(forward(x)) = x
score = gradient of log p                                    finite derivatives, also far in the tails
the identity at initialisation                               every parameter has a gradient
the same in train and eval mode, alone and in a batch        2-D densities integrate to 1
"""

import copy
import itertools
import math

import pytest
import torch
from torch import Tensor

from flowdiff.denoisers.base import Perturbation
from flowdiff.denoisers.score_flow import ScoreFlow
from flowdiff.errors import ConfigError
from tests.helpers.configs import build, choices, node
from tests.helpers.models import (
    CLASSES,
    IMAGE,
    classes_of,
    jacobian,
    latent,
    make,
    points,
    random_flow,
    randomise,
    statistics,
)

FLOWS, ACTIVATIONS, PRECONDITIONS = choices("flow"), choices("activation"), choices("precondition")


def pairs(flows: list[str]) -> list[tuple[str, str, str]]:
    """These flows with every activation and with every whitening: (flow, activation, precondition)."""
    found = [
        *itertools.product(flows, ACTIVATIONS, ["annealed"]),
        *itertools.product(flows, ["softplus"], PRECONDITIONS),
    ]
    return sorted(set(found))


def each(flows: list[str]) -> list[tuple[str, str, str]]:
    """Every one of the flows once, and every activation and whitening with two of them."""
    return sorted({(flow, "softplus", "annealed") for flow in flows} | set(pairs(["coupling", "linear"])))


every_model = pytest.mark.parametrize(("flow", "activation", "precondition"), each(FLOWS))
every_pair = pytest.mark.parametrize(
    ("flow", "activation", "precondition"),
    sorted({*each(FLOWS), *itertools.product(FLOWS, ["softplus"], PRECONDITIONS)}),
)
every_flow = pytest.mark.parametrize(
    ("flow", "activation"), [model[:2] for model in each(FLOWS) if model[2] == "annealed"]
)


def accepts(flow: str, shape: tuple[int, ...]) -> bool:
    try:
        make(shape, flow=flow)
    except Exception as error:
        cause = error if isinstance(error, ConfigError) else error.__cause__
        assert isinstance(cause, ConfigError), error
        return False
    return True


PLANAR = [flow for flow in FLOWS if accepts(flow, (2,))]


@every_pair
def test_log_det_is_that_of_the_jacobian(flow: str, activation: str, precondition: str) -> None:
    model = random_flow(flow, activation, precondition)
    x, sigma, labels = points()
    for given in (labels, None):
        z = latent(model, x, sigma, given)
        log_normal = -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
        sign, log_det = torch.linalg.slogdet(jacobian(model, x, sigma, given))
        assert (sign != 0).all()
        torch.testing.assert_close(model.log_prob(x, sigma, given), log_normal + log_det, rtol=1e-9, atol=1e-8)


@every_model
def test_the_flow_is_not_the_identity(flow: str, activation: str, precondition: str) -> None:
    """Or the other tests would say nothing."""
    model = random_flow(flow, activation, precondition)
    x, sigma, labels = points()
    u = model.precondition(x.flatten(1), sigma, classes_of(model, len(x), labels))[0]
    assert (latent(model, x, sigma, labels) - u).abs()[sigma < 2].mean() > 0.05
    low = points()[0][:1].expand(2, *IMAGE), torch.full((2,), 0.1, dtype=torch.float64)
    different = model.log_prob(*low, torch.tensor([0, 1]))
    assert (different[0] - different[1]).abs() > 1e-3


@every_pair
def test_inverse(flow: str, activation: str, precondition: str) -> None:
    model = random_flow(flow, activation, precondition)
    x, sigma, labels = points()
    for given in (labels, None):
        z = latent(model, x, sigma, given).view_as(x)
        torch.testing.assert_close(model.inverse(z, sigma, given), x, rtol=1e-6, atol=1e-6)
    z = 3 * torch.randn(6, *IMAGE, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    back = latent(model, model.inverse(z, sigma, labels), sigma, labels).view_as(z)
    torch.testing.assert_close(back, z, rtol=1e-6, atol=1e-6)


@every_model
def test_score_is_the_gradient(flow: str, activation: str, precondition: str) -> None:
    model = random_flow(flow, activation, precondition)
    x, sigma, labels = points()
    score, log_prob = model.score_and_log_prob(x, sigma, labels)
    torch.testing.assert_close(log_prob, model.log_prob(x, sigma, labels))
    inner = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.log_prob(inner, sigma, labels).sum(), inner)
    torch.testing.assert_close(score, gradient)
    widths = sigma.view(-1, 1, 1, 1)
    torch.testing.assert_close(model.denoise(x, sigma, labels), x + widths**2 * gradient)
    # ... and of log p as it is, by central differences along one direction
    step = 1e-5 * widths * torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    rise = model.log_prob(x + step, sigma, labels) - model.log_prob(x - step, sigma, labels)
    torch.testing.assert_close(rise / 2e-5, (gradient * step / 1e-5).flatten(1).sum(1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("flow", "activation", "precondition", "dtype"),
    [
        *((*model, torch.float32) for model in each(FLOWS)),
        *((flow, "softplus", "annealed", torch.float64) for flow in FLOWS),
    ],
)
def test_finite_at_the_ends_and_in_the_tails(flow: str, activation: str, precondition: str, dtype: torch.dtype) -> None:
    model = copy.deepcopy(random_flow(flow, activation, precondition)).to(dtype)
    generator = torch.Generator().manual_seed(4)
    for sigma in (0.002, 80.0):
        direction = torch.randn(5, *IMAGE, generator=generator, dtype=dtype)
        far = torch.tensor([0.0, 1.0, 30.0, 1e3, 1e5], dtype=dtype).view(-1, 1, 1, 1)
        x = (direction * far).requires_grad_()
        labels = torch.arange(5) % CLASSES
        score, log_prob = model.score_and_log_prob(x, sigma, labels)
        assert log_prob.isfinite().all() and score.isfinite().all()
        assert model.denoise(x, sigma, labels).isfinite().all()
        # second derivatives: by x and by the parameters
        second = torch.autograd.grad((score * direction).sum(), [x, *model.parameters()], allow_unused=True)
        assert all(s.isfinite().all() for s in second if s is not None)


@every_pair
def test_identity_at_initialisation(flow: str, activation: str, precondition: str) -> None:
    model = make(flow=flow, activation=activation, precondition=precondition).double()
    assert isinstance(model, ScoreFlow)
    model.fit(statistics())
    x, sigma, labels = points()
    for given in (labels, None):
        classes = classes_of(model, len(x), given)
        u, log_det = model.precondition(x.flatten(1), sigma, classes)
        torch.testing.assert_close(latent(model, x, sigma, given), u)
        expected = -0.5 * (u.square() + math.log(2 * math.pi)).sum(1) + log_det
        torch.testing.assert_close(model.log_prob(x, sigma, given), expected)
        # the denoiser is that of the whitening alone (linear in test_precondition.py, where it is affine)
        inner = x.flatten(1).requires_grad_()
        u, log_det = model.precondition(inner, sigma, classes)
        (score,) = torch.autograd.grad((log_det - 0.5 * u.square().sum(1)).sum(), inner)
        start = inner.detach() + sigma[:, None] ** 2 * score
        torch.testing.assert_close(model.denoise(x, sigma, given).flatten(1), start, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("flow", "activation", "precondition", "loss"),
    [
        *((*model, "mixture") for model in each(FLOWS)),
        *itertools.product(FLOWS, ["softplus"], ["annealed"], sorted(set(choices("loss")) - {"mixture"})),
    ],
)
def test_every_parameter_has_a_gradient(flow: str, activation: str, precondition: str, loss: str) -> None:
    model = copy.deepcopy(random_flow(flow, activation, precondition))
    objective = build("loss", loss)
    objective.check(model)
    x, sigma, labels = points(12)
    drop = torch.arange(12) % 4 == 3
    objective(model, x, labels, sigma, torch.randn_like(x), Perturbation(drop))["loss"].mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if not (activation == "identity" and name.endswith("gate")):  # whose gate mixes x with x
            assert parameter.grad.abs().max() > 0, name


@every_model
def test_alone_in_a_batch_and_in_either_mode(flow: str, activation: str, precondition: str) -> None:
    model = copy.deepcopy(random_flow(flow, activation, precondition))
    x, sigma, labels = points()
    score, log_prob = model.score_and_log_prob(x, sigma, labels)
    back = model.inverse(x.tanh(), sigma, labels)
    for i in (0, 3, 5):
        one = slice(i, i + 1)
        alone = model.score_and_log_prob(x[one], sigma[one], labels[one])
        torch.testing.assert_close(alone, (score[one], log_prob[one]), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(model.inverse(x[one].tanh(), sigma[one], labels[one]), back[one])
    order = torch.tensor([3, 1, 4, 0, 5, 2])
    torch.testing.assert_close(model.score(x[order], sigma[order], labels[order]), score[order])
    model.train()
    torch.testing.assert_close(model.score_and_log_prob(x, sigma, labels), (score, log_prob))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flow", "activation", "precondition"),
    each(PLANAR),
)
def test_two_dimensional_densities_integrate_to_one(flow: str, activation: str, precondition: str) -> None:
    model = random_flow(flow, activation, precondition, shape=(2,))
    n = 240
    angles = torch.linspace(0, 2 * math.pi, 721, dtype=torch.float64)
    circle = 4.2 * torch.stack([angles.cos(), angles.sin()], 1)  # holds all but 1.5e-4 of the mass of z
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2000, 2, dtype=torch.float64, generator=generator)
    for sigma, label in ((0.3, 1), (0.7, None), (20.0, 2)):
        labels = None if label is None else torch.tensor([label])
        with torch.no_grad():
            # a grid over the image of the circle, in coordinates x = A g in which samples have unit covariance
            turn = torch.linalg.cholesky(model.inverse(z, sigma, labels).T.cov())
            ring = torch.linalg.solve_triangular(turn, model.inverse(circle, sigma, labels).T, upper=False).T
            axes = [torch.linspace(a, b, n, dtype=torch.float64) for a, b in zip(*ring.aminmax(dim=0), strict=True)]
            cell = math.prod((axis[1] - axis[0]).item() for axis in axes) * turn.det().item()
            density = model.log_prob(torch.cartesian_prod(*axes) @ turn.T, sigma, labels).exp()
        assert density.sum().item() * cell == pytest.approx(1.0, abs=0.01), (sigma, label)


@every_flow
def test_second_derivatives_of_log_prob(flow: str, activation: str) -> None:
    """gradgradcheck: the score's derivative by x against finite differences of the score."""
    model = random_flow(flow, activation)
    x, sigma, labels = points(2)
    sigma = torch.tensor([0.3, 1.5], dtype=torch.float64)
    x = x.clamp(-1, 1).requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda points: model.log_prob(points, sigma, labels).sum(), (x,), fast_mode=True
    )


@pytest.mark.parametrize(
    ("flow", "activation", "loss"),
    [
        *((*model[:2], "denoising") for model in each(FLOWS) if model[2] == "annealed"),
        *itertools.product(FLOWS, ["softplus"], ["mixture", "fokker_planck"]),
    ],
)
def test_gradient_of_the_objectives_with_a_score(flow: str, activation: str, loss: str) -> None:
    """Their second and third derivatives against finite differences of the loss along a random direction of weights."""
    model = copy.deepcopy(random_flow(flow, activation))
    objective = build("loss", loss)
    x, sigma, labels = points()
    sigma = sigma.clamp(0.05, 5.0)
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(6), dtype=x.dtype)
    x0 = 0.5 * x.tanh()
    parameters = [p for p in model.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(5)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]

    def value() -> Tensor:
        return objective(model, x0, labels, sigma, eps)["loss"].mean()

    gradients = torch.autograd.grad(value(), parameters)
    slope = sum((g * v).sum() for g, v in zip(gradients, direction, strict=True))
    step, values = 1e-6, []
    for sign in (1, -2):
        with torch.no_grad():
            for p, v in zip(parameters, direction, strict=True):
                p.add_(v, alpha=sign * step)
        values.append(value().detach())
    torch.testing.assert_close((values[0] - values[1]) / (2 * step), slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("num_classes", [0, 1])
def test_without_classes_and_with_one(flow: str, num_classes: int) -> None:
    model = make(num_classes=num_classes, flow=flow).double()
    model.fit(statistics(num_classes=num_classes))
    randomise(model)
    x, sigma, labels = points(num_classes=num_classes)
    assert torch.isfinite(model.log_prob(x, sigma, labels)).all()
    back = model.inverse(latent(model, x, sigma, labels).view_as(x), sigma, labels)
    torch.testing.assert_close(back, x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("flow", FLOWS)
def test_one_step_is_enough_to_be_a_flow(flow: str) -> None:
    model = make(
        flow=flow, overrides={"flow.n_flows": 1} if "n_flows" in node("flow", flow, activation=None) else {}
    ).double()
    model.fit(statistics())
    randomise(model)
    x, sigma, labels = points()
    back = model.inverse(latent(model, x, sigma, labels).view_as(x), sigma, labels)
    torch.testing.assert_close(back, x, rtol=1e-6, atol=1e-6)
    assert model.denoise(x, sigma, labels).isfinite().all()
