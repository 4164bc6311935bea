"""The optimisers of conf/optimizer and the user's own: what a step is, what a run that goes on finds of it."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flowdiff.commands.train import request_of
from flowdiff.errors import ConfigError, FlowdiffError
from flowdiff.model import checkpoint
from flowdiff.options import Recipe
from flowdiff.training import AdamW, Muon, run
from flowdiff.training.optimizers import orthogonal
from flowdiff.training.strategies import check
from tests.helpers.command_lines import BARE, Compose
from tests.helpers.runs import train


class Small(nn.Module):
    """A layer of each kind: two matrices of one shape, one of another, a kernel, an embedding, a bare matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.wide = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 24)
        self.conv, self.table, self.bare = nn.Conv2d(3, 4, 2), nn.Embedding(5, 8), nn.Parameter(torch.randn(6, 6))


def walk(optimizer: Optimizer, weights: list[nn.Parameter], gradients: list[list[Tensor]]) -> list[Tensor]:
    """The weights after a step of each gradients."""
    for step in gradients:
        for weight, gradient in zip(weights, step, strict=True):
            weight.grad = gradient.clone()
        optimizer.step()
    return [weight.detach().clone() for weight in weights]


def compare(
    kind: Callable[..., Optimizer], other: Callable[[nn.Module], Optimizer], chosen: Callable[[nn.Module], list[Any]]
) -> tuple[list[Tensor], list[Tensor]]:
    """Chosen weights after three steps of one optimiser and of another, from one start and with one row of gradients.

    The first optimiser has all of the module's weights, and gradients for all.
    """
    first, second = Small(), Small()
    second.load_state_dict(first.state_dict())
    gradients = [[torch.randn_like(weight) for weight in first.parameters()] for _ in range(3)]
    picked = [i for i, weight in enumerate(first.parameters()) if any(weight is each for each in chosen(first))]
    one = walk(kind(first, lr=0.1, weight_decay=0.3), list(first.parameters()), gradients)
    few = [[step[i] for i in picked] for step in gradients]
    two = walk(other(second), [list(second.parameters())[i] for i in picked], few)
    return [one[i] for i in picked], two


def hidden(module: Any) -> list[nn.Parameter]:
    return [module.first.weight, module.second.weight, module.wide.weight]


def rest(module: Any) -> list[nn.Parameter]:
    return [module.first.bias, module.wide.bias, module.conv.bias, module.table.weight, module.bare]


def test_adamw_is_torchs_bit_for_bit() -> None:
    found, expected = compare(
        AdamW,
        lambda m: torch.optim.AdamW(m.parameters(), lr=0.1, weight_decay=0.3, fused=True),
        lambda m: list(m.parameters()),
    )
    assert all(map(torch.equal, found, expected))


def test_muon_is_torchs_for_matrices() -> None:
    def theirs(module: nn.Module) -> Optimizer:
        return torch.optim.Muon(hidden(module), lr=0.1, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")

    for found, expected in zip(*compare(Muon, theirs, hidden), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)  # bfloat16, of steps of 0.02·√max(A, B) each


def test_muon_is_adamw_for_all_else() -> None:
    def theirs(module: nn.Module) -> Optimizer:
        return torch.optim.AdamW(rest(module), lr=0.1, weight_decay=0.3, fused=True)

    assert all(map(torch.equal, *compare(Muon, theirs, rest)))


def test_a_kernel_is_the_matrix_of_its_outputs() -> None:
    conv, linear = nn.Conv2d(3, 4, 2, bias=False), nn.Linear(12, 4, bias=False)
    linear.weight.data = conv.weight.detach().flatten(1).clone()
    gradients = [[torch.randn(4, 3, 2, 2)] for _ in range(3)]
    (kernel,) = walk(Muon(conv, 0.1, 0.3), [conv.weight], gradients)
    (matrix,) = walk(Muon(linear, 0.1, 0.3), [linear.weight], [[g[0].flatten(1)] for g in gradients])
    assert torch.equal(kernel.flatten(1), matrix)


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (7, 7), (1, 9)])
def test_steps_are_orthogonal_whatever_the_scale(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape) * torch.tensor([1e-6, 1.0, 1e6]).view(-1, 1, 1)
    u, s, v = torch.linalg.svd(matrices, full_matrices=False)
    found = u.mT @ orthogonal(matrices).float() @ v.mT
    values = found.diagonal(dim1=1, dim2=2)[s > 0.1 * s[:, :1]]  # the smallest come up last
    assert values.min() > 0.5 and values.max() < 1.3
    assert torch.equal(orthogonal(torch.zeros(1, *shape)), torch.zeros(1, *shape, dtype=torch.bfloat16))


@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_a_scaled_gradient_is_clipped_as_it_is_without(kind: type[AdamW]) -> None:
    start, x = Small().state_dict(), torch.randn(16, 8)
    found = []
    for scale in (1.0, 1024.0):
        module = Small()
        module.load_state_dict(start)
        optimizer, scaler = kind(module, 0.1, 0.0, betas=(0.5, 0.5)), torch.amp.GradScaler("cpu", init_scale=scale)
        for factor in (1.0, 1e-3):  # clipped, and not
            optimizer.zero_grad()
            scaler.scale(module.first(factor * x).square().sum()).backward()
            assert not getattr(optimizer, "_step_supports_amp_scaling", False), "Lightning would leave them scaled"
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
        found.append(module.first.bias.detach())
    torch.testing.assert_close(*found)


def test_a_closure_is_called_once_before_the_step() -> None:
    module, calls = Small(), []
    optimizer = Muon(module, 0.1, 0.0)
    before = module.first.weight.detach().clone()

    def closure() -> Tensor:
        calls.append(torch.equal(module.first.weight, before))
        loss = module.first(torch.ones(1, 8)).sum()
        loss.backward()
        return loss

    assert isinstance(optimizer.step(closure), Tensor)
    assert calls == [True] and not torch.equal(module.first.weight, before)
    assert module.first.weight.grad is not None and module.second.weight.grad is None


# -- in a run -------------------------------------------------------------------------------------------


def test_another_optimisers_state_is_one_line(config: Compose, tmp_path: Path) -> None:
    train(config(*BARE, "trainer.max_steps=2"))
    go_on = (*BARE, "trainer.max_steps=3", f"ckpt_path={tmp_path}/run/checkpoints/last.ckpt", "optimizer=muon")
    with pytest.raises(FlowdiffError, match="can't be gone on from: its optimiser's state is not what") as caught:
        train(config(*go_on, run_dir=tmp_path / "other"))
    assert "\n" not in str(caught.value)


def test_muon_refuses_shares_of_matrices() -> None:
    check(request_of("trainer=fsdp", "callbacks=minimal"), [])
    with pytest.raises(ConfigError, match="trainer.strategy=fsdp: .*optimizer=adamw"):
        check(request_of("trainer=fsdp", "callbacks=minimal", "optimizer=muon"), [])


class Descent(torch.optim.SGD):
    """A user's own."""

    def __init__(self, module: nn.Module, lr: float, weight_decay: float, momentum: float) -> None:
        super().__init__(module.parameters(), lr, momentum=momentum, weight_decay=weight_decay)


def own(folder: Path, optimizer: Any, *words: str) -> Any:
    request = request_of(*map(str, words), f"run_dir={folder}", *BARE, "flow.n_flows=2", "flow.width=16")
    request.optimizer = Recipe("optimizer", optimizer)
    return run.train(request)


@pytest.mark.parametrize("is_node", [True, False])
def test_a_users_own_trains_and_goes_on(is_node: bool, tmp_path: Path) -> None:
    node = {"_target_": f"{__name__}.Descent", "_partial_": True, "momentum": 0.9}
    optimizer = node if is_node else functools.partial(Descent, momentum=0.9)
    own(tmp_path / "a", optimizer, "trainer.max_steps=2")
    last = tmp_path / "a" / "checkpoints" / "last.ckpt"
    assert checkpoint.read(last)["flowdiff"]["config"]["optimizer"] == node
    own(tmp_path / "b", optimizer, "trainer.max_steps=4", f"ckpt_path={last}")
    state = checkpoint.read(tmp_path / "b" / "checkpoints" / "last.ckpt")["optimizer_states"][0]["state"]
    assert {name for each in state.values() for name in each} == {"momentum_buffer"}


def test_what_an_own_one_refuses_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FlowdiffError, match=r"^optimizer: .*momentum") as caught:
        own(tmp_path / "a", functools.partial(Descent, momentum=-1.0), "trainer.max_steps=2")
    assert "\n" not in str(caught.value)
