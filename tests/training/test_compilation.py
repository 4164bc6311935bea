"""compile=true: the gradients of eager mode, one graph for all steps, checkpoints that know nothing of it.

torch.compile's own backend takes minutes for a whole flow: experiments/compile has it for every one. Here all flows go
through what goes before it, the capture as one graph (where the derivatives are taken, and mistakes would be made).
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch._inductor import config as inductor
from torch._inductor.utils import fresh_inductor_cache

from flowdiff.denoisers.base import Denoiser, Perturbation
from flowdiff.denoisers.compiled import check_compiler
from flowdiff.errors import ConfigError
from flowdiff.model import checkpoint
from flowdiff.training import run
from flowdiff.training.compilation import compile_loss
from tests.helpers.command_lines import BARE, Command, Compose
from tests.helpers.compilers import needs_compiler
from tests.helpers.configs import CONF, build, choices
from tests.helpers.models import make, points, randomise, statistics
from tests.helpers.runs import train
from tests.helpers.states import equal, states

pytestmark = pytest.mark.slow

Graphs = list[torch.fx.GraphModule]


def model_of(flow: str, precondition: str = "annealed", dtype: torch.dtype = torch.float64) -> Denoiser:
    """One step of a flow, random weights."""
    node = OmegaConf.load(CONF / "flow" / f"{flow}.yaml")
    parts = [f"flow.flows.{name}" for name in node.flows] if "flows" in node else ["flow"]
    sizes = dict.fromkeys([f"{part}.n_flows" for part in parts], 1)
    sizes |= {f"flow.{key}": 1 for key in ("depth", "levels") if key in node}
    model = make(flow=flow, precondition=precondition, overrides=sizes).to(dtype)
    model.fit(statistics())
    randomise(model)
    return model


def batch(dtype: torch.dtype = torch.float64) -> list[Any]:
    """x0, labels, sigma, eps, perturbation, progress."""
    x0, sigma, labels = points()
    assert labels is not None
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(3), dtype=dtype)
    perturbation = Perturbation(drop=torch.arange(len(x0)) % 2 == 0)
    return [x0.to(dtype), labels, sigma.to(dtype), eps, perturbation, torch.tensor(0.5)]


def gradients(terms: Callable[..., dict[str, Tensor]], model: Denoiser, given: list[Any]) -> Tensor:
    model.zero_grad()
    terms(model, *given)["loss"].mean().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def assert_equal_gradients(actual: Tensor, expected: Tensor) -> None:
    assert expected.abs().max() > 0
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("flow", "precondition"), [*((flow, "annealed") for flow in choices("flow")), ("linear", "gaussianised")]
)
def test_every_flow_is_one_graph_with_the_gradients_of_eager_mode(flow: str, precondition: str, graphs: Graphs) -> None:
    foreign = flow == "zuko"  # the library's own objects end a graph; its gradients are right all the same
    if foreign:
        pytest.importorskip("zuko")
    model, loss, given = model_of(flow, precondition), build("loss", "likelihood" if foreign else "mixture"), batch()
    expected = gradients(loss, model, given)
    assert_equal_gradients(gradients(compile_loss(loss, model), model, given), expected)
    assert len(graphs) == 1 or foreign


@pytest.mark.parametrize("loss", ["mixture", "fokker_planck"])
def test_gaussianised_pixels_have_all_derivatives(loss: str, graphs: Graphs) -> None:
    """Below σ_g, where they are bent: a derivative by σ too, for the loss that takes one."""
    model, (x0, labels, sigma, *rest) = model_of("linear", "gaussianised"), batch()
    given = [x0, labels, 0.03 + 0.01 * sigma.clamp(max=10), *rest]
    objective = build("loss", loss)
    expected = gradients(objective, model, given)
    assert_equal_gradients(gradients(compile_loss(objective, model), model, given), expected)
    assert len(graphs) == 1


@needs_compiler
def test_the_compiler_that_is_here_is_found() -> None:
    with fresh_inductor_cache():
        torch.compiler.reset()
        check_compiler("cpu")


@needs_compiler
@pytest.mark.skipif(not os.environ.get("FLOWDIFF_INDUCTOR"), reason="a minute: FLOWDIFF_INDUCTOR=1")
def test_a_run_by_inductor_is_that_of_eager_mode(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From an empty cache: the compiler that is here is found, and used."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache))
    words = (*BARE, "experiment=toy", "flow=linear", "flow.n_flows=1", "trainer.max_steps=4")
    words += ("loss=likelihood", "dataset.num_train=512", "dataset.num_test=64")
    ends = []
    for name, more in (("eager", []), ("compiled", ["compile=true"])):
        done = command("train", *words, *more, f"run_dir={name}")
        assert done.returncode == 0, done.stderr
        assert bool(list(cache.rglob("*.so"))) == bool(more)
        ends.append(states(tmp_path / name / "checkpoints" / "last.ckpt")["current_model_state"])
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_what_a_step_says_is_not_baked_in(graphs: Graphs) -> None:
    """Dropout, an augmented batch's shift, and other weights (as a validation's average)."""
    model, loss, (*given, perturbation, progress) = model_of("coupling"), build("loss", "likelihood"), batch()
    terms = compile_loss(loss, model)

    def check(share: float, shift: Tensor | None) -> Tensor:
        found, step = [], perturbation._replace(dropout=share, shift=shift, probes="fresh")
        for function in (loss, terms):
            torch.manual_seed(0)
            found.append(function(model, *given, step, progress)["loss"])
        torch.testing.assert_close(*found)
        return found[0].detach()

    shifts = [torch.full((6, 14), value, dtype=torch.float64) for value in (0.5, -1.0)]
    seen = [check(0.0, None), check(0.5, None), check(0.1, None), check(0.0, shifts[0]), check(0.0, shifts[1])]
    with torch.no_grad():
        next(model.flow.parameters()).mul_(2)
    seen += [check(0.0, None)]
    assert all(not torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])
    assert len(graphs) == 4  # of each share of dropout, and of the shift


def test_a_run_is_that_of_eager_mode_and_its_checkpoint_too(config: Compose, tmp_path: Path, graphs: Graphs) -> None:
    words = (*BARE, "trainer.val_check_interval=3", "decay_steps=12", "augment=affine", "dropout=0.1")
    words += ("weighting=learned", "weighting.width=8")
    for name, more in (("eager", []), ("compiled", ["compile=true"])):
        train(config(*words, *more, "trainer.max_steps=6", run_dir=tmp_path / name))
        assert len(graphs) == (1 if more else 0)  # all steps alike, and no validation
    eager, other = (tmp_path / name / "checkpoints" / "last.ckpt" for name in ("eager", "compiled"))
    contents = [checkpoint.read(path) for path in (eager, other)]
    for key in ("state_dict", "current_model_state"):  # the average and the weights
        one, two = (content[key] for content in contents)
        assert list(one) == list(two)
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6, msg=name)
    # either goes on the other way, and ends where the run ends that changed nothing
    ends = []
    for name, path, more in (("a", eager, []), ("b", other, ["compile=false"]), ("c", eager, ["compile=true"])):
        train(config(*words, *more, "trainer.max_steps=8", f"ckpt_path={path}", run_dir=tmp_path / name))
        ends.append(states(tmp_path / name / "checkpoints" / "last.ckpt")["current_model_state"])
    for end in ends[1:]:
        assert isinstance(end, dict) and isinstance(ends[0], dict) and not equal(end, contents[0]["state_dict"])
        for name, value in ends[0].items():
            torch.testing.assert_close(end[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_mistakes_are_named(config: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="compile=1: must be true or false"):
        train(config(*BARE, "compile=1"))
    estimated = make(flow="residual", overrides={"flow.exact_dim": 0})
    with pytest.raises(ConfigError, match=r"compile=true: this flow estimates .* flow.exact_dim"):
        compile_loss(build("loss", "likelihood"), estimated)
    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(run.Run, "fit", lambda *given: pytest.fail("training began"))
    with fresh_inductor_cache():
        torch.compiler.reset()
        with pytest.raises(ConfigError, match=r"compile=true: needs a C\+\+ compiler") as caught:
            train(config(*BARE, "compile=true"))
        with pytest.raises(ConfigError, match="compile=true"):
            check_compiler("cpu")
    assert "\n" not in str(caught.value)
