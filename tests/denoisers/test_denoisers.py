"""Denoisers: the interface of k-diffusion and EDM, labels and their dropout, closed forms, and user's mistakes."""

import copy
import functools
import math
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from flowdiff.denoisers import base
from flowdiff.denoisers.base import Denoiser, Perturbation
from flowdiff.denoisers.score_flow import ScoreFlow
from flowdiff.denoisers.wrappers import Clipped
from flowdiff.errors import ConfigError, FlowdiffError
from flowdiff.samplers.noise import IndexedNoise
from flowdiff.samplers.ode import Heun
from tests.helpers.analytic import GaussianDenoiser
from tests.helpers.configs import build, choices
from tests.helpers.k_diffusion_sampling import sampling  # noqa: E402
from tests.helpers.models import CLASSES, IMAGE, make, points, random_flow, randomise, statistics
from tests.helpers.ready_made import READY_MADE

SHAPE = (1, 8, 8)


def built(name: str, shape: tuple[int, ...] = SHAPE, num_classes: int = CLASSES, **groups: str) -> Denoiser:
    """A choice of conf/denoiser, small; those that are ready-made from a folder."""
    overrides = {"denoiser.path": str(READY_MADE[name](shape, num_classes))} if name in READY_MADE else None
    return make(shape, num_classes, overrides, denoiser=name, **groups)


@functools.cache
def free(name: str) -> Denoiser:
    model = built(name).double().eval()
    if not model.frozen:
        model.fit(statistics(SHAPE))
    randomise(model)
    return model


def any_denoiser(kind: str) -> Denoiser:
    return random_flow() if kind == "score_flow" else free(kind)


def batch(model: Denoiser) -> tuple[Tensor, Tensor, Tensor]:
    x, sigma, labels = points(shape=model.shape)
    assert labels is not None
    return x, sigma, labels


every = pytest.mark.parametrize("kind", choices("denoiser"))


@every
def test_forms_of_sigma(kind: str) -> None:
    model = any_denoiser(kind)
    x, _, labels = batch(model)
    expected = model.denoise(x, torch.full((len(x),), 0.4, dtype=torch.float64), labels)
    for sigma in (0.4, torch.tensor(0.4, dtype=torch.float64), torch.tensor([0.4], dtype=torch.float64)):
        assert torch.equal(model.denoise(x, sigma, labels), expected)
    assert torch.equal(model(x, 0.4, labels), expected)
    assert expected.shape == x.shape and expected.dtype == x.dtype


@every
def test_the_null_class_is_its_own(kind: str) -> None:
    model = any_denoiser(kind)
    x, sigma, labels = batch(model)
    null = model.denoise(x, sigma)
    for c in range(CLASSES):
        assert not torch.allclose(model.denoise(x, sigma, torch.full((len(x),), c)), null)
    dropped = model.denoise(x, sigma, labels, Perturbation(torch.ones(len(x), dtype=torch.bool)))
    torch.testing.assert_close(dropped, null)
    some = torch.arange(len(x)) % 2 == 0
    mixed = model.denoise(x, sigma, labels, Perturbation(some))
    torch.testing.assert_close(mixed[some], null[some])
    torch.testing.assert_close(mixed[~some], model.denoise(x, sigma, labels)[~some])
    kept = model.denoise(x, sigma, labels, Perturbation(torch.zeros_like(some)))
    torch.testing.assert_close(kept, model.denoise(x, sigma, labels))


@every
def test_wrong_labels_are_refused(kind: str) -> None:
    model = any_denoiser(kind)
    x, sigma, labels = batch(model)
    for wrong in (-1, CLASSES, 12):
        labels[1] = wrong
        with pytest.raises(FlowdiffError, match=rf"{wrong}.*0, {CLASSES - 1}"):
            model.denoise(x, sigma, labels)
    with pytest.raises(FlowdiffError, match="integers"):
        model.denoise(x, sigma, torch.zeros(len(x)))


@pytest.mark.parametrize("conditioning", ["film", "none"])
def test_labels_for_an_unconditional_model_are_refused(conditioning: str) -> None:
    num_classes = 0 if conditioning == "film" else CLASSES
    for denoiser in choices("denoiser"):
        shape = IMAGE if denoiser == "score_flow" else SHAPE
        classes = 0 if denoiser in READY_MADE else num_classes  # which has no conditioning of ours
        model = built(denoiser, shape, classes, conditioning=conditioning)
        assert model.num_classes == 0
        x = torch.zeros(2, *shape)
        assert model.denoise(x, 1.0).isfinite().all()
        with pytest.raises(FlowdiffError, match="unconditional"):
            model.denoise(x, 1.0, torch.tensor([0, 0]))


@every
def test_k_diffusion_runs_on_it_unchanged_and_agrees_with_ours(kind: str) -> None:
    model = copy.deepcopy(any_denoiser(kind))
    clipped = Clipped(model, -2.0, 2.0)
    labels = torch.arange(3)
    sigmas = build("schedule", "karras", sigma_min=0.002, sigma_max=80.0)(6)
    noise = IndexedNoise(range(3), model.shape, dtype=torch.float64)()
    ours = Heun(6)(clipped, lambda: noise, sigmas, labels)
    for scalar_or_vector in (clipped, lambda x, sigma, labels: clipped(x, sigma[0], labels)):
        extra = {"labels": labels}
        theirs = sampling.sample_heun(scalar_or_vector, sigmas[0] * noise, sigmas, extra, disable=True)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert sampling.sample_euler(model, sigmas[0] * noise, sigmas, extra, disable=True).shape == noise.shape


@every
def test_same_result_without_gradients(kind: str) -> None:
    model = any_denoiser(kind)
    x, sigma, labels = batch(model)
    expected = model.denoise(x, sigma, labels).detach()
    with torch.no_grad():
        torch.testing.assert_close(model.denoise(x, sigma, labels), expected, rtol=1e-10, atol=1e-12)
    with torch.inference_mode():
        for given in (x, sigma, labels), (x.clone(), sigma.clone(), labels.clone()):  # made outside, and inside
            torch.testing.assert_close(model.denoise(*given), expected, rtol=1e-10, atol=1e-12)


@every
def test_state_dict_holds_everything(kind: str) -> None:
    model = any_denoiser(kind)
    fresh = built(kind, model.shape).double()
    fresh.load_state_dict(model.state_dict())
    x, sigma, labels = batch(model)
    torch.testing.assert_close(fresh.denoise(x, sigma, labels), model.denoise(x, sigma, labels))


def test_a_gaussian_model_is_the_closed_form() -> None:
    """At its start, with the Gaussian whitening, the model is N(mu_c, S + sigma^2 I): log p, score, D and inverse."""
    s = statistics()
    model = make(precondition="gaussian").double()
    assert isinstance(model, ScoreFlow)
    model.fit(s)
    x, sigma, _ = points()
    within = s.eigenvectors @ s.eigenvalues.diag() @ s.eigenvectors.T
    for c in range(CLASSES + 1):
        truth = GaussianDenoiser(s.class_means[c], within, IMAGE)
        labels = torch.full((len(x),), c) if c < CLASSES else None
        torch.testing.assert_close(model.log_prob(x, sigma, labels), truth.log_prob(x, sigma))
        torch.testing.assert_close(model.score(x, sigma, labels), truth.score(x, sigma), rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(model.denoise(x, sigma, labels), truth(x, sigma), rtol=1e-7, atol=1e-8)
        z = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(model.inverse(z, sigma, labels), truth.inverse(z, sigma), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", [name for name in choices("denoiser") if name not in ("score_flow", *READY_MADE)])
def test_a_free_network_starts_as_edms_skip_connection(name: str) -> None:
    model = make(SHAPE, denoiser=name).double()
    model.fit(statistics(SHAPE))
    x, sigma, labels = batch(model)
    skip = (0.6**2 / (sigma**2 + 0.6**2)).view(-1, 1, 1, 1)
    torch.testing.assert_close(model.denoise(x, sigma, labels), skip * x)
    assert (model.has_density, model.has_inverse, model.normalized) == (False, False, False)


UNETS = ("unet", "unet_diffusers", "unet_diffusers_sdxl")


@pytest.mark.parametrize("name", UNETS)
@pytest.mark.parametrize("shape", [(1, 7, 7), (3, 8, 4), (1, 28, 28), (4, 2, 5)])
def test_the_unets_take_images_of_any_size(name: str, shape: tuple[int, ...]) -> None:
    assert make(shape, denoiser=name).denoise(torch.zeros(2, *shape), 1.0).shape == (2, *shape)


@pytest.mark.parametrize("name", UNETS)
def test_the_unets_take_no_vectors(name: str) -> None:
    with pytest.raises(Exception, match=f"denoiser={name}: needs images") as caught:
        make((2,), denoiser=name)
    assert isinstance(caught.value.__cause__, ConfigError)


@pytest.mark.parametrize("flow", ["linear", "coupling", "spectral"])
def test_concat_is_a_joint_density(flow: str) -> None:
    model = random_flow(flow, conditioning="concat")
    x, sigma, labels = batch(model)
    assert (model.has_density, model.normalized, model.has_inverse) == (True, False, False)
    inner = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.log_prob(inner, sigma, labels).sum(), inner)
    torch.testing.assert_close(model.score(x, sigma, labels), gradient)
    assert not torch.allclose(model.score(x, sigma, labels), model.score(x, sigma))
    with pytest.raises(FlowdiffError, match="concat"):
        model.inverse(x, sigma, labels)
    with pytest.raises(FlowdiffError, match="sampler=inversion"):
        sampler = build("sampler", "inversion", sigma_start=0.1)
        sampler(model, lambda: x, torch.tensor([0.1, 0.0]), labels)


@pytest.mark.parametrize("activation", ["softplus", "elu", "tanh"])
def test_leak_0_has_a_score_but_no_likelihood_and_no_inverse(activation: str) -> None:
    model = make(activation=activation, overrides={"activation.leak": 0.0}).double()
    assert isinstance(model, ScoreFlow)
    assert (model.normalized, model.has_inverse) == (False, False)
    randomise(model)
    x, sigma, labels = batch(model)
    assert model.score(x, sigma, labels).isfinite().all()
    with pytest.raises(FlowdiffError, match="leak"):
        model.inverse(x, sigma, labels)


@pytest.mark.parametrize("flow", choices("flow"))
def test_precision_under_autocast(flow: str) -> None:
    """bfloat16 networks, but log p and the score are float32 and near their values without autocast."""
    model = copy.deepcopy(random_flow(flow)).float()
    x, sigma, labels = (t.float() if t.is_floating_point() else t for t in batch(model))
    score, log_prob = model.score_and_log_prob(x, sigma, labels)
    with torch.autocast("cpu", torch.bfloat16):
        half = model.score_and_log_prob(x, sigma, labels)
    assert half[0].dtype == half[1].dtype == torch.float32
    identity = make(flow=flow)
    identity.fit(statistics())
    with torch.autocast("cpu", torch.bfloat16):
        start = identity.denoise(x, sigma, labels)
    torch.testing.assert_close(start, identity.denoise(x, sigma, labels), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(half[1], log_prob, rtol=0.02, atol=0.02 * math.prod(IMAGE))


@pytest.mark.parametrize("flow", choices("flow"))
def test_bits_under_autocast(flow: str) -> None:
    """Within 0.01 bits/dim of float32; the same numbers where a flow has no network between σ and its log-scales."""
    model = copy.deepcopy(random_flow(flow, precondition="gaussianised")).float()
    generator = torch.Generator().manual_seed(5)
    x, labels = 0.5 * torch.randn(128, *IMAGE, generator=generator), torch.arange(128) % CLASSES
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)  # of trained models' size
        expected = model.log_prob(x, 0.002, labels)
        with torch.autocast("cpu", torch.bfloat16):
            found = model.log_prob(x, 0.002, labels)
    bits = (found - expected).double() / math.prod(IMAGE) / math.log(2)
    assert found.dtype == torch.float32
    assert bits.mean().abs() < 0.01
    if flow in ("linear", "residual"):
        assert bits.abs().max() < 1e-4


@pytest.mark.parametrize("flow", choices("flow"))
def test_a_loss_makes_no_tensor_of_another_device(flow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device a tensor of the CPU would be refused, as on a GPU."""
    model = make(flow=flow, precondition="gaussianised" if flow == "coupling" else "annealed").to("meta")
    monkeypatch.setattr(base, "check_labels", lambda *given: None)  # it looks at values
    for name_of, nothing in (("autocast", nullcontext()), ("is_autocast_enabled", False), ("get_autocast_dtype", None)):
        monkeypatch.setattr(torch, name_of, lambda *given, value=nothing, **options: value)  # meta has none
    x0, eps = torch.empty(2, 5, *IMAGE, device="meta")
    labels, drop = torch.empty(5, dtype=torch.int64, device="meta"), torch.empty(5, dtype=torch.bool, device="meta")
    terms = build("loss", "mixture")(model, x0, labels, torch.empty(5, device="meta"), eps, Perturbation(drop))
    terms["loss"].mean().backward()
    assert all(value.device.type == "meta" for value in terms.values())


@pytest.mark.parametrize(
    ("groups", "overrides", "message"),
    [
        ({}, {"flow.n_flows": 0}, r"n_flows=0: "),
        ({"flow": "linear"}, {"flow.n_flows": -1}, r"n_flows=-1: "),
        ({"flow": "linear"}, {"flow.data_dim": 784}, r"data_dim=784: "),
        ({"flow": "conv"}, {"flow.n_flows": 0}, r"n_flows=0: "),
        ({"flow": "conv"}, {"flow.factors": [3]}, r"factors=\[3\]: "),
        ({"flow": "spectral"}, {"flow.n_flows": 0}, r"n_flows=0: "),
        ({"flow": "spectral"}, {"flow.nested": [2.0]}, r"nested=\[2\.0\]: "),
        ({}, {"flow.width": 0}, r"width=0: "),
        ({}, {"flow.width": 2.5}, r"width=2\.5: "),
        ({}, {"flow.depth": 0}, r"depth=0: "),
        ({}, {"flow.max_log_scale": 0.0}, r"max_log_scale=0\.0: "),
        ({"flow": "conv"}, {"flow.max_log_scale": -2.0}, r"max_log_scale=-2\.0: "),
        ({}, {"activation.leak": 2.0}, r"leak=2\.0: "),
        ({}, {"conditioning.sigma_embed_dim": 1}, r"sigma_embed_dim=1: "),
        ({}, {"conditioning.cond_embed_dim": 0}, r"cond_embed_dim=0: "),
        ({"denoiser": "unet"}, {"denoiser.width": 0}, r"width=0: "),
        ({"denoiser": "unet_diffusers"}, {"denoiser.width": 0}, r"width=0: "),
        ({"denoiser": "unet_diffusers"}, {"denoiser.layers": 0}, r"layers=0: "),
        ({"denoiser": "unet_diffusers"}, {"denoiser.multipliers": [1, 0]}, r"multipliers=\[1, 0\]: "),
        ({"denoiser": "unet_diffusers_sdxl"}, {"denoiser.width_factor": 0}, r"width_factor=0: "),
        ({"denoiser": "unet_diffusers_sdxl"}, {"denoiser.tokens": 0}, r"tokens=0: "),
        ({"denoiser": "unet_diffusers_sdxl"}, {"denoiser.transformer_layers": [1]}, r"transformer_layers=\[1\]: "),
        ({"flow": "conv", "conditioning": "concat"}, {}, r"conv.*images"),
    ],
)
def test_mistakes_are_named(groups: dict[str, str], overrides: dict[str, object], message: str) -> None:
    with pytest.raises(Exception, match=message) as caught:
        make(SHAPE, overrides=overrides, **groups)
    cause: BaseException | None = caught.value
    while cause is not None and not isinstance(cause, ConfigError):
        cause = cause.__cause__
    assert isinstance(cause, ConfigError), caught.value
