"""flowdiff.load: the model of a checkpoint in a notebook."""

import inspect

import pytest
import torch

import flowdiff
from flowdiff import samplers
from flowdiff.errors import FlowdiffError
from flowdiff.model.api import Model
from tests.helpers.configs import choices
from tests.helpers.k_diffusion_sampling import sampling as k_sampling  # noqa: E402
from tests.helpers.trained import checkpoint


@pytest.fixture(scope="module")
def digits() -> Model:
    return flowdiff.load(checkpoint("digits"))


@pytest.fixture(scope="module")
def toy() -> Model:
    return flowdiff.load(checkpoint("toy"))


def points(model: Model, n: int = 5) -> torch.Tensor:
    return torch.randn(n, *model.shape, generator=torch.Generator().manual_seed(0))


def test_facts(digits: Model, toy: Model) -> None:
    assert (digits.shape, digits.num_classes, digits.levels, digits.data) == ((1, 8, 8), 10, 17, "digits")
    assert (toy.shape, toy.num_classes, toy.levels) == ((2,), 0, None)
    assert digits.config["dataset"]["_target_"] == "flowdiff.data.Digits"


def test_score_is_the_gradient_and_denoise_follows(digits: Model) -> None:
    x, sigma = points(digits).requires_grad_(), torch.tensor([0.1, 0.5, 1.0, 2.0, 5.0])
    labels = torch.arange(5)
    (gradient,) = torch.autograd.grad(digits.log_prob(x, sigma, labels).sum(), x)
    score = digits.score(x.detach(), sigma, labels)
    assert torch.allclose(score, gradient, rtol=1e-4, atol=1e-4)
    denoised = digits.denoise(x.detach(), sigma, labels)
    assert torch.allclose(denoised, x.detach() + sigma.view(-1, 1, 1, 1) ** 2 * score, atol=1e-5)
    assert torch.equal(digits(x.detach(), sigma, labels=labels), denoised)


def test_ways_to_give_labels(digits: Model) -> None:
    x = points(digits)
    three = digits.log_prob(x, 0.5, torch.full((5,), 3))
    assert three.shape == (5,)
    assert torch.equal(digits.log_prob(x, 0.5, 3), three) and torch.equal(digits.log_prob(x, 0.5, [3] * 5), three)
    null = digits.log_prob(x, 0.5)
    assert not torch.allclose(null, three) and torch.equal(null, digits.log_prob(x, 0.5, None))


def test_wrong_labels(digits: Model, toy: Model) -> None:
    for wrong in (10, -1):
        with pytest.raises(FlowdiffError, match=str(wrong)):
            digits.log_prob(points(digits), 0.5, wrong)
        with pytest.raises(FlowdiffError, match=f"labels={wrong}"):
            digits.sample(1, wrong)
    with pytest.raises(FlowdiffError, match="unconditional"):
        toy.denoise(points(toy), 0.5, 0)
    with pytest.raises(FlowdiffError, match="unconditional"):
        toy.sample(1, 0)


def test_unconditional(toy: Model) -> None:
    assert toy.log_prob(points(toy), 0.5).shape == (5,)
    assert toy.sample(7, num_steps=2, quiet=True).shape == (7, 2)


def test_sample(digits: Model) -> None:
    x = digits.sample(3, [1, 2, 3], sampler="heun", num_steps=4, seed=9)
    assert x.shape == (3, 1, 8, 8) and x.abs().max() <= 1
    assert torch.equal(x, digits.sample(3, torch.tensor([1, 2, 3]), samplers.Heun(4), seeds=[9, 10, 11]))
    assert not torch.equal(x, digits.sample(3, [1, 2, 3], sampler="heun", num_steps=4, seed=10))
    assert not torch.equal(x, digits.sample(3, None, sampler="heun", num_steps=4, seed=9))
    byte = digits.to_uint8(x)
    assert byte.dtype == torch.uint8 and byte.shape == x.shape


@pytest.mark.parametrize("name", choices("sampler"))
def test_sampler_by_name(digits: Model, name: str) -> None:
    assert digits.sample(2, sampler=name, num_steps=2, sigma_start=0.3).isfinite().all()


def test_schedule_by_name(digits: Model) -> None:
    linear = digits.sample(2, num_steps=4, schedule="linear")
    assert not torch.equal(linear, digits.sample(2, num_steps=4, schedule="geometric"))


def test_mistakes(digits: Model) -> None:
    with pytest.raises(FlowdiffError, match="sampler=foo: must be one of ancestral, ddim, dpmpp_2m, "):
        digits.sample(1, sampler="foo")
    with pytest.raises(FlowdiffError, match="n=0"):
        digits.sample(0)
    with pytest.raises(FlowdiffError, match="num_steps=0"):
        digits.sample(1, num_steps=0)
    with pytest.raises(FlowdiffError, match="no such file"):
        flowdiff.load("/nowhere/last.ckpt")


def test_a_denoiser_without_density() -> None:
    unet = flowdiff.load(checkpoint("unet"))
    assert not unet.has_density
    assert unet(points(unet), 0.5, 3).shape == (5, 1, 8, 8)
    for method in (unet.log_prob, unet.score):
        with pytest.raises(FlowdiffError, match="no density"):
            method(points(unet), 0.5)
    with pytest.raises(FlowdiffError, match="sampler=inversion: needs a flow"):
        unet.sample(1, sampler="inversion")


def test_weights(digits: Model) -> None:
    raw = flowdiff.load(checkpoint("digits"), weights="raw")
    assert not torch.equal(raw.log_prob(points(raw), 0.5), digits.log_prob(points(digits), 0.5))


def test_weights_need_no_gradient(digits: Model) -> None:
    assert not any(p.requires_grad for p in digits.parameters())
    assert not digits.denoise(points(digits), 0.5).requires_grad


def test_k_diffusion_runs_on_it(digits: Model) -> None:
    x = 10 * points(digits)
    sigmas = k_sampling.get_sigmas_karras(5, 0.01, 10.0)
    out = k_sampling.sample_heun(digits, x, sigmas, extra_args={"labels": torch.arange(5)}, disable=True)
    assert out.isfinite().all() and out.abs().max() < 3


def test_load_has_one_signature() -> None:
    from flowdiff.model import api

    assert list(inspect.signature(flowdiff.load).parameters) == list(inspect.signature(api.load).parameters)
