"""trainer.cuda_graph: all but the recording itself, which needs a GPU (tests/test_gpu.py). Here to replay is to call.

A run by it is the run without it, bit for bit: with dropout, an average of the weights, validations and a resumption.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowdiff.commands.train import request_of
from flowdiff.denoisers.base import Denoiser, Perturbation
from flowdiff.errors import ConfigError
from flowdiff.objectives import LearnedWeighting, Mixture
from flowdiff.training import graphed
from flowdiff.training.graphed import Function, GraphedStep, Outcome, mean_loss, use_graph
from tests.helpers.command_lines import BARE, TINY, Compose
from tests.helpers.configs import build
from tests.helpers.models import make, points, random_flow
from tests.helpers.runs import train
from tests.helpers.states import equal, states

pytestmark = pytest.mark.slow


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The numbers of steps that were replayed, for each that was recorded."""
    counts: list[int] = []

    def record(function: Function) -> Function:
        counts.append(0)
        number = len(counts) - 1

        def replay() -> Outcome:
            counts[number] += 1
            return function()

        return replay

    monkeypatch.setattr(graphed, "RECORD", record)
    return counts


def batch(rows: int = 6, dropout: float = 0.0) -> list[Any]:
    """x0, labels, sigma, eps, perturbation, progress."""
    x0, sigma, labels = points()
    assert labels is not None
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(3), dtype=x0.dtype)
    shift = torch.ones(rows, 14, dtype=x0.dtype, requires_grad=True)
    perturbation = Perturbation(drop=torch.arange(rows) % 2 == 0, shift=shift, dropout=dropout)
    return [x0[:rows], labels[:rows], sigma[:rows], eps[:rows], perturbation, torch.tensor(0.5)]


def gradients(step: Any, model: Denoiser, given: list[Any]) -> list[Tensor]:
    """The loss, its terms, and what the weights get."""
    model.zero_grad()
    torch.manual_seed(1)
    loss, terms = step(model, *given)
    (2 * loss).backward()
    learnt = [*model.parameters(), given[4].shift]
    return [loss.detach(), *terms.values(), *(each.grad for each in learnt if each.grad is not None)]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_replayed_step_is_the_step(dropout: float, replays: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    model, loss = random_flow("coupling"), build("loss", "mixture")
    step = GraphedStep(loss)
    for number in (1.0, 0.5):
        given = batch(dropout=dropout)
        given[2] = number * given[2]
        expected = gradients(lambda *every: mean_loss(loss, *every), model, given)
        given[4].shift.grad = None
        actual = gradients(step, model, given)
        assert len(actual) == len(expected) > 4 and given[4].shift.grad is not None
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    assert replays == [3], "one to be held against the step, and two steps"
    assert not capsys.readouterr().out


def test_what_the_loss_learns_has_its_gradients(replays: list[int]) -> None:
    model, weighting = random_flow("coupling"), LearnedWeighting(8).double()
    torch.nn.init.normal_(weighting.last.weight)
    loss, found = Mixture(weighting=weighting), []
    for step in (GraphedStep(loss, weighting), lambda *every: mean_loss(loss, *every)):
        weighting.zero_grad()
        gradients(step, model, batch())
        found.append([p.grad.clone() for p in weighting.parameters() if p.grad is not None])
    assert replays == [2] and len(found[0]) == 4
    assert all(map(torch.equal, *found))


def test_a_step_that_is_not_replayed_says_so_once(replays: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    model, loss = random_flow("coupling"), build("loss", "likelihood")
    step = GraphedStep(loss)
    gradients(step, model, batch())
    for _ in range(2):
        small = gradients(step, model, batch(rows=4))
        expected = gradients(lambda *every: mean_loss(loss, *every), model, batch(rows=4))
        assert all(torch.equal(a, b) for a, b in zip(small, expected, strict=True))
    assert replays == [2]
    assert capsys.readouterr().out == "trainer.cuda_graph: a batch of another shape runs without it\n"
    gradients(step, model, batch())
    assert replays == [3]


def test_what_can_not_be_recorded_runs_as_it_is_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, loss = random_flow("coupling"), build("loss", "likelihood")
    expected = gradients(lambda *every: mean_loss(loss, *every), model, batch())

    def refuse(function: Function) -> Function:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    def spoil(function: Function) -> Function:
        def replay() -> Outcome:
            outcome = function()
            return outcome._replace(gradients=[None if g is None else 1.1 * g for g in outcome.gradients])

        return replay

    for record, line in ((refuse, "this step can't be recorded"), (spoil, "what was recorded is not what")):
        monkeypatch.setattr(graphed, "RECORD", record)
        step = GraphedStep(loss)
        for _ in range(2):
            actual = gradients(step, model, batch())
            assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
        said = capsys.readouterr().out
        assert said.startswith(f"trainer.cuda_graph: {line}") and said.count("\n") == 1


def test_a_run_is_that_without_it(
    config: Compose, tmp_path: Path, replays: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*TINY, *BARE, "trainer.val_check_interval=3", "decay_steps=12", "augment=affine", "dropout=0.1")

    def run(name: str, steps: int, *more: str) -> dict[str, Any]:
        train(config(*words, f"trainer.max_steps={steps}", *more, run_dir=tmp_path / name))
        return states(tmp_path / name / "checkpoints" / "last.ckpt")

    plain = run("plain", 8)
    assert not replays
    monkeypatch.setattr(graphed, "find_obstacle", lambda *given: None)
    recorded = "trainer.cuda_graph=null"
    assert equal(run("graphed", 8, recorded), plain)
    run("first", 5, recorded)
    assert equal(run("second", 8, recorded, f"ckpt_path={tmp_path / 'first/checkpoints/last.ckpt'}"), plain)
    assert replays == [9, 6, 4]
    assert equal(run("off", 8), plain) and len(replays) == 3


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], None),
        (["trainer=cpu"], "needs a GPU (trainer=gpu)"),
        (["trainer.precision=bf16-mixed"], "needs trainer.precision=32-true"),
        (["trainer.accumulate_grad_batches=2"], "needs trainer.accumulate_grad_batches=1"),
        (["trainer.devices=2"], "needs one process (trainer.devices=1)"),
        (["trainer.strategy=ddp"], "needs trainer.strategy=auto"),
        (["compile=true"], "compile=true is not recorded"),
    ],
)
def test_where_it_is_not_safe_it_is_off_or_refused(
    words: list[str], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model = random_flow("coupling")
    for asked in (None, True, False):
        told = "null" if asked is None else str(asked).lower()
        request = request_of("trainer=gpu", *words, f"trainer.cuda_graph={told}", "run_dir=.")
        if asked and reason:
            with pytest.raises(ConfigError) as caught:
                use_graph(request, model)
            assert str(caught.value) == f"trainer.cuda_graph=true: {reason}: choose null or false"
        else:
            assert use_graph(request, model) == (asked is not False and reason is None)


def test_a_step_of_random_length_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    estimated = make(flow="residual", overrides={"flow.exact_dim": 0})
    assert not use_graph(request_of("trainer=gpu", "run_dir=."), estimated)
