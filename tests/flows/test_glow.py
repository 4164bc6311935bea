"""Glow against a plain NumPy one; which channels leave at which level; what it refuses; its initialisation by data."""

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from flowdiff.bijections.activations import Softplus
from flowdiff.denoisers.score_flow import ScoreFlow
from flowdiff.errors import ConfigError
from flowdiff.flows.actnorm import ActNorm
from flowdiff.flows.context import Context
from flowdiff.flows.conv import ChannelMixing, ConvCoupling
from flowdiff.flows.glow import GlowFlow
from flowdiff.flows.linear import AffineFiLM
from tests.helpers.models import make, points, randomise, statistics

Array = NDArray[np.float64]


def glow(shape: tuple[int, ...] = (1, 8, 8), **keys: Any) -> GlowFlow:
    """A small one in float64 with random weights."""
    flow = GlowFlow(shape, context_dim=3, activation=partial(Softplus), **{"n_flows": 2, "width": 8} | keys).double()
    randomise(flow)
    return flow


def given(n: int, kappa: float = 1.0) -> Context:
    generator = torch.Generator().manual_seed(1)
    embedding = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return Context(embedding, torch.full((n,), kappa, dtype=torch.float64))


def images(n: int, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- against NumPy --------------------------------------------------------------------------------------


def squeeze(x: Array) -> Array:
    """Every 2×2 block of a channel becomes 4 channels."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).transpose(0, 1, 3, 5, 2, 4).reshape(n, 4 * c, h // 2, w // 2)


def one_by_one(layer: ChannelMixing, kappa: float) -> Array:
    """W = Pᵀ L U P, multiplied out."""
    linear = layer.linear
    lower, upper, s = (p.detach().numpy() for p in (linear.lower, linear.upper, linear.log_diagonal))
    bound = linear.max_log_scale
    left = np.eye(len(s)) + kappa * np.tril(lower, -1)
    right = np.diag(np.exp(kappa * bound * np.tanh(s / bound))) + kappa * np.triu(upper, 1)
    order = np.eye(len(s))[linear.permutation.numpy()]
    product: Array = order.T @ left @ right @ order
    return product


def plain(flow: GlowFlow, x: Array, kappa: float) -> tuple[list[Array], Array]:
    """The latents of every level and the log-determinant of a Glow whose FiLM, couplings and activations rest."""
    h = squeeze(x)
    logdet = np.zeros(len(x))
    latents: list[Array] = []
    for step in flow.inner.steps:
        if isinstance(step, ActNorm):
            s = kappa * 4 * np.tanh(step.log_scale.detach().numpy() / 4)
            b = kappa * step.shift.detach().numpy()
            h = np.exp(s)[:, None, None] * h + b[:, None, None]
            logdet += h[0, 0].size * s.sum()
        elif isinstance(step, ChannelMixing):
            weight = one_by_one(step, kappa)
            h = np.einsum("ij,njhw->nihw", weight, h)
            logdet += h[0, 0].size * np.linalg.slogdet(weight)[1]
    if hasattr(flow.inner.steps[-1], "flow"):
        half = h.shape[1] // 2
        latents.append(h[:, half:])
        deeper, change = plain(flow.inner.steps[-1].flow, h[:, :half], kappa)  # type: ignore[arg-type]
        return latents + deeper, logdet + change
    return [h], logdet


@pytest.mark.parametrize("kappa", [1.0, 0.3])
@pytest.mark.parametrize(("shape", "levels"), [((1, 8, 8), 3), ((3, 4, 8), 2), ((2, 6, 10), 1)])
def test_squeeze_actnorm_convolution_and_levels_are_numpys(shape: tuple[int, ...], levels: int, kappa: float) -> None:
    flow = glow(shape, levels=levels)
    for module in flow.modules():
        if isinstance(module, AffineFiLM | ConvCoupling):
            last = module.layer if isinstance(module, AffineFiLM) else module.network.last
            nn.init.zeros_(last.weight), nn.init.zeros_(last.bias)
        elif hasattr(module, "gate"):
            nn.init.zeros_(module.gate)
    x = images(4, shape)
    z, logdet = flow(x, given(4, kappa))
    latents, expected = plain(flow, x.numpy(), kappa)
    assert len(latents) == levels
    np.testing.assert_allclose(logdet.detach().numpy(), expected, rtol=1e-10)
    h = z.detach().numpy()
    for latent in latents[:-1]:
        h = squeeze(h)
        half = h.shape[1] // 2
        np.testing.assert_allclose(h[:, half:], latent, atol=1e-10)
        h = h[:, :half]
    np.testing.assert_allclose(squeeze(h), latents[-1], atol=1e-10)


# -- levels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "channels"),
    [
        ((1, 4, 4), [4, 8]),
        ((1, 8, 8), [4, 8, 16]),
        ((1, 28, 28), [4, 8]),
        ((3, 32, 32), [12, 24, 48]),
        ((1, 2, 6), [4]),
    ],
)
def test_an_image_is_halved_as_often_as_it_can_be(shape: tuple[int, ...], channels: list[int]) -> None:
    flow = GlowFlow(shape, context_dim=3, activation=partial(Softplus), n_flows=2, width=8)
    found = [len(m.log_scale) for m in flow.modules() if isinstance(m, ActNorm)]
    assert found == [c for c in channels for _ in range(2)]


def test_half_of_the_channels_leave_after_a_level() -> None:
    """The second level doesn't touch them, and the last coupling of the first moves them."""
    flow, x = glow((1, 4, 4), levels=2), images(3, (1, 4, 4))
    other = copy.deepcopy(flow)
    randomise(other.inner.steps[-1], seed=1)
    one, two = (torch.nn.functional.pixel_unshuffle(f(x, given(3))[0], 2) for f in (flow, other))
    torch.testing.assert_close(one[:, 2:], two[:, 2:], rtol=0, atol=0)
    assert ((one[:, :2] - two[:, :2]).abs().amax((0, 2, 3)) > 0.01).all()
    *_, last = (step for step in flow.inner.steps if isinstance(step, ConvCoupling))
    h = images(3, (4, 2, 2))
    y, _ = last(h, given(3))
    torch.testing.assert_close(y[:, :2], h[:, :2], rtol=0, atol=0)
    assert ((y[:, 2:] - h[:, 2:]).abs().amax((0, 2, 3)) > 0.01).all()


@pytest.mark.parametrize(
    ("shape", "keys", "message"),
    [
        ((2,), {}, r"flow=glow: needs images \(C, H, W\) of even height and width, not data of shape \(2,\)"),
        ((1, 5, 4), {}, "needs images"),
        ((1, 4, 7), {}, "needs images"),
        ((1, 28, 28), {"levels": 3}, "levels=3: images of 28×28 can be halved 2 times, no more"),
        ((1, 2, 8), {"levels": 2}, "levels=2: images of 2×8 can be halved 1 time, no more"),
        ((1, 8, 8), {"levels": 0}, "levels=0: must be a whole number"),
        ((1, 8, 8), {"levels": True}, "levels=true"),
        ((1, 8, 8), {"n_flows": 0}, "n_flows=0"),
        ((1, 8, 8), {"width": 0}, "width=0"),
        ((1, 8, 8), {"max_log_scale": 0}, "max_log_scale=0"),
    ],
)
def test_what_it_refuses(shape: tuple[int, ...], keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        glow(shape, **keys)


# -- initialisation by data -----------------------------------------------------------------------------


def test_data_normalise_the_output_of_every_actnorm(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one pass, though each layer sees what those before it have become."""
    model = make((1, 8, 8), flow="glow").double()
    assert isinstance(model, ScoreFlow)
    model.fit(statistics((1, 8, 8)))
    randomise(model)
    x, _, labels = points(300, (1, 8, 8))
    layers = [m for m in model.modules() if isinstance(m, ActNorm)]
    assert model.wants_first_batch
    model.initialise(0.3 * x + 1, 0.1, labels)
    assert not model.wants_first_batch
    outputs: list[torch.Tensor] = []
    terms = ActNorm.terms

    def watched(layer: ActNorm, x: torch.Tensor, context: Context) -> tuple[torch.Tensor, torch.Tensor]:
        found = terms(layer, x, context)
        outputs.append(found[0])
        return found

    monkeypatch.setattr(ActNorm, "terms", watched)
    model.log_prob(0.3 * x + 1, 0.1, labels)
    assert len(outputs) == len(layers) == 9
    for y in outputs:
        torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(y.shape[1]).double(), rtol=0, atol=1e-6)
        torch.testing.assert_close(y.var((0, 2, 3), correction=0), torch.ones(y.shape[1]).double(), rtol=0, atol=1e-6)
