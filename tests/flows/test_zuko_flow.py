"""flow=zuko by name: zuko's own log_prob, the identity at the start, tails, and what is refused."""

import copy
import math
import re
import sys

import pytest
import torch
import zuko
from torch import Tensor, nn

from flowdiff.denoisers.score_flow import ScoreFlow
from flowdiff.errors import ConfigError, how_to_install
from flowdiff.flows import zuko as module
from flowdiff.flows.zuko import ZukoFlow
from tests.helpers.models import IMAGE, classes_of, jacobian, latent, make, points, randomise, statistics

NAMES = ["BPF", "MAF", "NICE", "NSF", "RealNVP"]
names = pytest.mark.parametrize("name", NAMES)


def model_of(name: str, shape: tuple[int, ...] = IMAGE, random: bool = True, **options: object) -> ScoreFlow:
    overrides = {"flow.name": name, "flow.options": options}
    model = make(shape, flow="zuko", overrides=overrides).double()
    assert isinstance(model, ScoreFlow)
    model.fit(statistics(shape))
    if random:
        randomise(model)
    return model


@names
@pytest.mark.parametrize("sigma", [0.002, 0.5, 80.0])
def test_log_prob_is_that_of_zukos_flow_with_the_same_weights(
    name: str, sigma: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flow that zuko alone made; κ scales the last layers of its networks, and inputs are within their limit."""
    monkeypatch.setattr(module, "soft_limit", lambda inputs: inputs)
    model = model_of(name)
    x, labels = 0.4 * points()[0].tanh(), torch.arange(6) % 3
    level = torch.full((6,), sigma, dtype=torch.float64)
    kappa = model.precondition.kappa(level)
    context = torch.cat([model.embed(level, labels), kappa[:, None]], 1)
    theirs = getattr(zuko.flows, name)(16, context.shape[1], transforms=3, hidden_features=[12] * 2, activation=nn.SiLU)
    theirs = theirs.double()
    flow = model.flow
    assert isinstance(flow, ZukoFlow)
    theirs.load_state_dict({key.replace(".network", ""): value for key, value in flow.flow.state_dict().items()})
    with torch.no_grad():
        for transform in theirs.transform.transforms:
            transform.hyper[-1].weight *= kappa[0]
            transform.hyper[-1].bias *= kappa[0]
    u, log_det = model.precondition(x.flatten(1), level, labels)
    expected = theirs(context)
    torch.testing.assert_close(model.log_prob(x, level, labels), expected.log_prob(u) + log_det, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(latent(model, x, level, labels), expected.transform(u))
    if sigma < 1:
        assert (expected.transform(u) - u).abs().max() > 0.05


@names
def test_change_of_variables_inverse_and_gradients(name: str) -> None:
    model = model_of(name)
    x, sigma, labels = points()
    z = latent(model, x, sigma, labels)
    log_normal = -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
    log_det = torch.linalg.slogdet(jacobian(model, x, sigma, labels))[1]
    torch.testing.assert_close(model.log_prob(x, sigma, labels), log_normal + log_det, rtol=1e-9, atol=1e-8)
    bisected = name == "BPF"  # whose inverse zuko finds to 1e-6
    accuracy = 2e-5 if bisected else 1e-8
    relative = (model.inverse(z.view_as(x), sigma, labels) - x).flatten(1).abs().amax(1) / (1 + sigma)
    assert relative.max() < accuracy
    model.score(x, sigma, labels).square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key


@names
def test_the_identity_at_the_start(name: str) -> None:
    model = model_of(name, random=False)
    x, sigma, labels = points()
    u, log_det = model.precondition(x.flatten(1), sigma, classes_of(model, 6, labels))
    torch.testing.assert_close(latent(model, x, sigma, labels), u)
    expected = -0.5 * (u.square() + math.log(2 * math.pi)).sum(1) + log_det
    torch.testing.assert_close(model.log_prob(x, sigma, labels), expected)


@names
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tails(name: str, dtype: torch.dtype) -> None:
    model = copy.deepcopy(model_of(name)).to(dtype)
    far = torch.tensor([0.0, 5.0, 1e3, 1e5], dtype=dtype).view(-1, 1, 1, 1)
    direction = torch.randn(4, *IMAGE, generator=torch.Generator().manual_seed(0), dtype=dtype)
    for sigma in (0.002, 80.0):
        x = (far * direction).requires_grad_()
        score, log_prob = model.score_and_log_prob(x, sigma, torch.arange(4) % 3)
        assert log_prob.isfinite().all() and score.isfinite().all()
        second = torch.autograd.grad((score * direction).sum(), [x, *model.parameters()], allow_unused=True)
        assert all(s.isfinite().all() for s in second if s is not None)


def test_options_go_to_the_constructor() -> None:
    model = model_of("NSF", bins=5, passes=2)
    flow = model.flow
    assert isinstance(flow, ZukoFlow)
    steps = flow.flow.transform.transforms
    assert len(steps) == 3 and all(step.passes == 2 and step.total == 5 + 5 + 4 for step in steps)
    assert all(isinstance(layer, nn.SiLU) for layer in list(steps[0].hyper.network)[1::2])
    assert model_of("MAF", transforms=1).flow.flow.transform.transforms[0].passes == 16


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("GMM", "zuko has no flow of this name"),
        ("nsf", "zuko has no flow of this name"),
        ("NCSF", "its base is not a standard normal"),
        ("NAF", "its image is bounded"),
        ("UNAF", "its image is bounded"),
        ("GF", "its image is bounded"),
        ("SOSPF", "its image is bounded"),
        ("CNF", "its log-determinant can't be differentiated twice"),
    ],
)
def test_names_that_are_refused(name: str, reason: str) -> None:
    allowed = "must be one of " + ", ".join(NAMES)
    with pytest.raises(ConfigError, match=f"name={name}: {reason}.*; {allowed}"):
        ZukoFlow((4,), 3, name=name)


def test_every_name_of_zuko_is_taken_or_refused() -> None:
    base = zuko.lazy.Flow
    flows = [k for k, v in vars(zuko.flows).items() if isinstance(v, type) and issubclass(v, base) and v is not base]
    assert set(NAMES) <= set(flows)
    state = torch.get_rng_state()
    assert [name for name in sorted(flows) if module.misfit(getattr(zuko.flows, name)) is None] == NAMES
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"options": {"knots": 3}}, r"options=\{'knots': 3\}: zuko.flows.NSF does not take it"),
        ({"options": {"features": 3}}, "options=.*features"),
        ({"options": {"bins": 0}}, "options=.*bins"),
        ({"options": 3}, "options=3: must be a mapping"),
        ({"n_flows": 0}, "n_flows=0"),
        ({"depth": 0}, "depth=0"),
    ],
)
def test_mistakes(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        ZukoFlow((4,), 3, **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_without_zuko(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "zuko"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "zuko", None)
    with pytest.raises(ConfigError, match=re.escape(f"flow=zuko: needs the package zuko: {how_to_install('zuko')}")):
        ZukoFlow((4,), 3)


@names
def test_one_coordinate(name: str) -> None:
    model = model_of(name, (1,))
    x = torch.linspace(-3, 3, 2001, dtype=torch.float64)[:, None]

    def integral(sigma: float) -> Tensor:
        return model.log_prob(x * (1 + sigma), sigma).exp().sum() * 0.003 * (1 + sigma)

    for sigma in (0.2, 3.0):
        assert integral(sigma).item() == pytest.approx(1, abs=0.02)
