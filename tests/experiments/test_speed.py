"""What a step asks of the machine has a budget: a crumb that comes back is one call of ATen more, on every machine."""

import pytest
import torch

from experiments.common.counting import count_calls, count_flop, count_kept
from experiments.speed.__main__ import build_contender
from tests.helpers.configs import choices

CPU = torch.device("cpu")
#: Calls of a forward pass and of a step by either loss, on digits with each flow's own settings.
BUDGET = {
    "autoregressive": (697, 1619, 3537),
    "autoregressive_spline": (1297, 3227, 8223),
    "conv": (1595, 4041, 7497),
    "coupling": (793, 2023, 4657),
    "glow": (2171, 5680, 10637),
    "jet": (625, 1271, 2837),
    "linear": (475, 814, 1257),
    "pixelcnn": (524, 879, 2020),
    "residual": (1129, 2780, 4337),
    "spectral": (921, 2460, 5727),
    "spline": (1593, 4167, 10905),
    "stack": (1520, 4149, 8743),
    "transformer": (871, 2174, 5417),
}
OF_OTHERS = {"zuko"}  # whose calls are another library's


def test_counts_are_those_of_a_product() -> None:
    weight, x = torch.randn(3, 3, requires_grad=True), torch.randn(2, 3)
    assert count_calls(lambda: x @ x.T) == 2, "a transpose and a product"
    assert count_flop(lambda: x @ x.T) == 2 * 2 * 2 * 3
    assert count_kept(lambda: (x @ weight).sum()) == 4 * 6, "x, by which the weight's gradient is taken"


@pytest.mark.slow
@pytest.mark.parametrize("flow", sorted({*choices("flow")} - OF_OTHERS))
def test_a_step_has_a_budget_of_calls(flow: str) -> None:
    likelihood, mixture = (build_contender(flow, loss, "digits", CPU, False) for loss in ("likelihood", "mixture"))
    assert likelihood.log_prob is not None
    for work in (likelihood.step, mixture.step):
        work()  # the optimiser's moments are made
    found = tuple(count_calls(work) for work in (likelihood.log_prob, likelihood.step, mixture.step))
    allowed = BUDGET[flow]
    assert all(n <= most for n, most in zip(found, allowed, strict=True)), f"{found} calls, the budget is {allowed}"
    assert all(n > 0.9 * most for n, most in zip(found, allowed, strict=True)), f"lower the budget to {found}"
