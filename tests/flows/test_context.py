"""The contract of a flow: one from outside gives its map alone; what a flow says of itself, those around it say too."""

import torch
from torch import Tensor

from flowdiff.denoisers import Perturbation, ScoreFlow, Standardized
from flowdiff.flows import Context, Flow, Stack
from flowdiff.flows.actnorm import ActNorm
from flowdiff.flows.residual import ResidualBlock
from flowdiff.nn import FiLM
from flowdiff.objectives import Mixture
from tests.helpers.models import points, statistics

FLOAT = torch.float64


class Scaled(Flow):
    """A stranger's: z = exp(κ·a)·x."""

    def __init__(self, shape: tuple[int, ...], context_dim: int) -> None:
        super().__init__()
        self.log_scale = torch.nn.Parameter(torch.full(shape, 0.3))

    def forward(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        log_scale = context.kappa[:, None] * self.log_scale
        return log_scale.exp() * x, log_scale.sum(1)

    def inverse(self, z: Tensor, context: Context) -> Tensor:
        return (-context.kappa[:, None] * self.log_scale).exp() * z


def test_a_strangers_flow_takes_a_training_step() -> None:
    model = ScoreFlow((2,), 3, lambda **sizes: Stack(**sizes, flows=[Scaled, Scaled]), Standardized, FiLM).double()
    assert model.normalized and model.exact and not model.wants_first_batch and model.uncompilable is None
    model.fit(statistics((2,)))
    x, sigma, labels = points(shape=(2,))
    step = Perturbation(torch.arange(6) < 3, torch.ones(6, model.embed.dim, dtype=FLOAT), 0.1, "fresh")
    Mixture()(model, x, labels, sigma, torch.randn_like(x), step)["loss"].mean().backward()
    grads = [flow.log_scale.grad for flow in model.flow.steps]  # type: ignore[union-attr]
    assert all(isinstance(grad, Tensor) and grad.abs().min() > 0 for grad in grads)
    torch.testing.assert_close(model.inverse(model.latent(x, sigma, labels), sigma, labels), x)


def test_what_one_step_says_the_whole_says() -> None:
    def whole(*steps: Flow) -> Stack:
        return Stack((2,), 5, [lambda step=step, **_: step for step in steps])

    class Shrinking(Scaled):
        normalized = False

    plain, random, fresh = Scaled((2,), 5), ResidualBlock(2, 5, 3, exact_dim=0), ActNorm(2)
    assert whole(plain).normalized and not whole(plain, whole(Shrinking((2,), 5))).normalized
    assert whole(plain).exact and not whole(whole(plain, random)).exact
    assert whole(plain).uncompilable is None and "random number of terms" in str(whole(plain, random).uncompilable)
    assert not whole(plain).wants_first_batch and whole(whole(fresh), plain).wants_first_batch


def test_a_split_context_says_the_same() -> None:
    whole = Context(torch.randn(5, 3), torch.rand(5), 0.2, "fresh", True)
    parts = whole.split(2)
    assert [len(part.kappa) for part in parts] == [2, 2, 1] and all(part[2:] == whole[2:] for part in parts)
    assert torch.equal(torch.cat([part.embedding for part in parts]), whole.embedding)
    assert torch.equal(torch.cat([part.kappa for part in parts]), whole.kappa)
