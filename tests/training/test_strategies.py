"""Plain DDP fits every model of conf/: each parameter has a part in every step. Where one hasn't, a line says so."""

import socket
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, distributed, nn

from flowdiff.commands.train import request_of
from flowdiff.denoisers.base import Perturbation
from flowdiff.errors import ConfigError, FlowdiffError
from flowdiff.model.construction import build as build_part
from flowdiff.training.callbacks import EMA
from flowdiff.training.strategies import NAMES, SEARCHING, check, explain, find_strategy
from tests.helpers.configs import build, choices
from tests.helpers.models import CLASSES, IMAGE, make, statistics, with_sample
from tests.helpers.ready_made import READY_MADE

MODELS = (
    *({"flow": flow} for flow in choices("flow")),
    *({"activation": activation} for activation in choices("activation")),
    *({"precondition": precondition} for precondition in choices("precondition")),
    *({"base": base} for base in choices("base")),
    *({"denoiser": denoiser} for denoiser in choices("denoiser") if denoiser not in (*READY_MADE, "score_flow")),
)


@pytest.mark.parametrize("groups", MODELS, ids=lambda groups: next(iter(groups.values())))
@pytest.mark.parametrize("loss", ["likelihood", "denoising"])
def test_every_parameter_has_a_gradient(groups: dict[str, str], loss: str) -> None:
    shape = (1, 8, 8) if "denoiser" in groups else IMAGE
    model, objective = make(shape, **groups), build("loss", loss)
    if objective.needs_likelihood and not model.normalized:
        pytest.skip("it has no likelihood")
    model.fit(with_sample(statistics(shape)))
    x, labels = torch.randn(4, *shape), torch.arange(4) % CLASSES
    given = Perturbation(drop=torch.tensor([True, False, False, False]), dropout=0.1, probes="fresh")
    terms = objective(model, x, labels, torch.rand(4) + 0.1, torch.randn_like(x), given)
    terms["loss"].mean().backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.fixture
def process() -> Iterator[None]:
    """A group of this process alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


class Two(nn.Module):
    """Uses one of its two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.used * x


def two_steps(name: str) -> None:
    strategy = find_strategy(name)
    wrapped = nn.parallel.DistributedDataParallel(Two(), **strategy._ddp_kwargs)  # type: ignore[union-attr]
    for _ in range(2):
        wrapped(torch.ones(1)).sum().backward()
    assert wrapped.module.used.grad._base is not None, "the gradient lies in its bucket"


@pytest.mark.parametrize("name", NAMES)
def test_a_parameter_without_a_part_is_said(name: str, process: None) -> None:
    if name == SEARCHING:
        two_steps(name)
        return
    with pytest.raises(RuntimeError) as caught:
        two_steps(name)
    told = explain(caught.value)
    assert isinstance(told, FlowdiffError) and str(told).endswith(f"trainer.strategy={SEARCHING}")
    assert "\n" not in str(told)


def test_other_strategies_are_lightnings() -> None:
    assert find_strategy("auto") is None and explain(RuntimeError("something else")) is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["callbacks=default"], "no process has the whole model for pictures, metrics and further averages"),
        (["callbacks=minimal", "compile=true"], "not with compile=true"),
    ],
)
def test_what_shares_of_a_model_cannot_do_is_refused(words: list[str], said: str) -> None:
    request = request_of("trainer=fsdp", "run_dir=.", *words)
    callbacks = [build_part(c) for c in (request.callbacks or {}).values() if c]
    with pytest.raises(ConfigError, match=f"trainer.strategy=fsdp: {said}"):
        check(request, callbacks)
    check(request_of("trainer=ddp", "run_dir=.", *words), callbacks)


def test_the_average_is_where_the_weights_will_be() -> None:
    module, average = LightningModule(), EMA(0.5)
    module.weight = nn.Parameter(torch.ones(2))
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta")))
    average.setup(trainer, module, "fit")  # type: ignore[arg-type]
    assert average._average_model is not None
    assert {p.device.type for p in average._average_model.module.parameters()} == {"meta"}
