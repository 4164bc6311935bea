"""The same log_prob as zuko's, with the same weights, for stacks of affine couplings."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import zuko
from torch import Tensor
from zuko.transforms import ComposedTransform, CouplingTransform, DependentTransform, MonotonicAffineTransform

from flowdiff.denoisers.score_flow import ScoreFlow
from flowdiff.flows.coupling import Coupling
from flowdiff.flows.gated import GatedActivation
from flowdiff.nn.bounds import soft_limit
from tests.helpers.models import latent, make, points, randomise, statistics

SLOPE = 1e-3


def zuko_affine(log_scale: Tensor, shift: Tensor) -> MonotonicAffineTransform:
    """exp(log_scale) x + shift; zuko bounds its parameter a by a / (1 + |a / log slope|), which is undone first."""
    return MonotonicAffineTransform(shift, log_scale / (1 - log_scale.abs() / -math.log(SLOPE)), slope=SLOPE)


def copied_mlp(step: Coupling) -> Callable[[Tensor], Tensor]:
    """zuko's MLP with the weights of our first and last layer; ours has a residual block between, set to 0."""
    network = step.network
    for layer in network.outer:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    mlp = zuko.nn.MLP(len(step.seen), 2 * len(step.moved), [network.first.out_features], torch.nn.SiLU).double()
    layers = [layer for layer in mlp if hasattr(layer, "weight")]
    assert len(layers) == 2
    layers[0].load_state_dict(network.first.state_dict())
    layers[1].load_state_dict(network.last.state_dict())
    return lambda x_a: mlp(soft_limit(x_a))


def zuko_coupling(step: Coupling, network: Callable[[Tensor], Tensor], dim: int, kappa: float) -> CouplingTransform:
    """The same coupling made of zuko's parts."""
    mask = torch.zeros(dim, dtype=torch.bool)
    mask[step.seen] = True

    def meta(x_a: Tensor) -> DependentTransform:
        a, b = network(x_a).chunk(2, -1)
        bound = step.transform.max_log_scale
        return DependentTransform(zuko_affine(bound * torch.tanh(kappa * a / bound), kappa * b), 1)

    return CouplingTransform(meta, mask)


@pytest.mark.parametrize("residual", [False, True], ids=["zuko's MLP, our weights", "our networks"])
@pytest.mark.parametrize("sigma", [0.002, 0.5, 80.0])
def test_affine_couplings_have_zukos_log_prob(residual: bool, sigma: float) -> None:
    model = make(flow="coupling", activation="identity").double()
    assert isinstance(model, ScoreFlow)
    model.fit(statistics())
    randomise(model)
    dim, n = math.prod(model.shape), 6
    x = points(n)[0] * 0.3
    level, labels = torch.full((n,), sigma, dtype=torch.float64), torch.arange(n) % 3
    kappa = model.precondition.kappa(level)[0].item()
    embedding = model.embed(level, labels)
    couplings = [step for step in model.flow.steps if not isinstance(step, GatedActivation)]
    assert len(couplings) == 3 and all(isinstance(step, Coupling) for step in couplings)
    networks = [partial(step.network, embedding=embedding) if residual else copied_mlp(step) for step in couplings]
    steps = [zuko_coupling(step, f, dim, kappa) for step, f in zip(couplings, networks, strict=True)]
    flow = zuko.distributions.NormalizingFlow(
        ComposedTransform(*steps),
        zuko.distributions.DiagNormal(torch.zeros(dim).double(), torch.ones(dim).double()),
    )
    u, log_det = model.precondition(x.flatten(1), level, labels)
    torch.testing.assert_close(model.log_prob(x, level, labels), flow.log_prob(u) + log_det)
    torch.testing.assert_close(latent(model, x, level, labels), flow.transform(u))
    z = torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    back = model.precondition.inverse(flow.transform.inv(z), level, labels).view_as(x)
    torch.testing.assert_close(model.inverse(z.view_as(x), level, labels), back)
    assert (flow.transform(u) - u).abs().max() > 0.1 * kappa
