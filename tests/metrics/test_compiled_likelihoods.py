"""`compile=true` of an evaluation: the likelihoods of eager mode, from one graph for all levels, sets and batches."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from flowdiff.data.digits import Digits
from flowdiff.denoisers.base import Denoiser
from flowdiff.denoisers.compiled import Compiled
from flowdiff.evaluation.comparison import Contender
from flowdiff.evaluation.measurement import leave_uncompiled
from flowdiff.metrics.base import Evaluand, Metric, measure
from flowdiff.metrics.classes import ClassPosterior
from flowdiff.metrics.likelihood import BitsPerDim, NLLBySigma
from flowdiff.metrics.ood import OODAuroc
from flowdiff.samplers.batched import BatchedSampler
from tests.helpers.configs import build, choices
from tests.helpers.measured import measured
from tests.helpers.models import make, points, random_flow, randomise, statistics

Graphs = list[torch.fx.GraphModule]
METRICS: dict[str, Metric] = {
    "bits_per_dim": BitsPerDim(),
    "nll_by_sigma": NLLBySigma([0.1, 2.0], num_images=130),
    "class_posterior": ClassPosterior([0.5], num_images=50),
    "ood_auroc": OODAuroc([1.0], num_images=None),
}


class Others(Digits):
    """Digits, and more images than the split has that are none."""

    def out_of_distribution(self) -> Any:
        return {"noise": lambda split: torch.randint(0, 17, (399, 1, 8, 8), generator=torch.Generator().manual_seed(0))}


def model_of_digits(**groups: str) -> Denoiser:
    model = make((1, 8, 8), 10, **groups)
    model.fit(statistics((1, 8, 8), 10))
    randomise(model)
    return model.eval()


def found(model: Denoiser, **how: Any) -> tuple[dict[str, float], dict[str, int]]:
    """Values of the metrics above, and the images of each."""
    results, skipped = measure(METRICS, Evaluand(model, Others(), **how))
    assert not skipped
    return {key: r.value for key, r in results.items()}, {key: r.n for key, r in results.items()}


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [500, 100])
def test_every_likelihood_is_that_of_eager_mode_from_one_graph(graphs: Graphs, batch_size: int) -> None:
    model = model_of_digits()
    expected, counts = found(model)
    assert not graphs
    values, n = found(model, compile=True, batch_size=batch_size)
    assert values == pytest.approx(expected, rel=1e-5) and n == counts
    assert n["bits_per_dim"] == 360 and n["nll_by_sigma/2"] == 130
    assert len(graphs) == 1
    randomise(model, seed=1)
    again, _ = found(model, compile=True, batch_size=batch_size)
    assert again == pytest.approx(found(model)[0], rel=1e-5) and again["bits_per_dim"] != values["bits_per_dim"]
    assert len(graphs) == 1, "the weights are no part of it"


@pytest.mark.slow
@pytest.mark.parametrize("flow", sorted(choices("flow")))
def test_log_prob_of_every_flow(graphs: Graphs, flow: str) -> None:
    model = random_flow(flow)
    x, sigma, labels = points()
    torch.testing.assert_close(
        Compiled(model).log_prob(x, sigma, labels), model.log_prob(x, sigma, labels).detach(), rtol=1e-5, atol=1e-8
    )
    assert graphs if flow == "zuko" else len(graphs) == 1


def test_a_level_is_no_part_of_the_graph_and_there_is_no_tape(graphs: Graphs) -> None:
    model = random_flow("linear")
    x, _, labels = points()
    for sigma in (0.3, 2.0, torch.tensor(0.7)):
        value = Compiled(model).log_prob(x, sigma, labels)
        assert not value.requires_grad
        torch.testing.assert_close(value, model.log_prob(x, sigma, labels).detach())
    assert len(graphs) == 1
    Compiled(model).log_prob(x, 0.3)
    assert len(graphs) == 2, "that of the null class too"


def test_in_inference_mode(graphs: Graphs) -> None:
    model = random_flow("linear")
    given = points()
    expected = model.log_prob(*given).detach()

    def check(x: Tensor, sigma: Tensor, labels: Tensor) -> None:
        torch.testing.assert_close(Compiled(model).log_prob(x, sigma, labels), expected)

    check(*given)
    with torch.inference_mode():
        for _ in range(3):
            check(*given)
            check(*(each.clone() for each in given))
    check(*given)
    assert len(graphs) <= 3, "one for each kind of tensor and mode"


def test_what_is_no_graph_is_evaluated_as_it_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    schedule = build("schedule", "karras", sigma_min=0.002, sigma_max=80.0)
    said = []
    for overrides in ({}, {"flow.exact_dim": 0}):
        model = make(flow="residual", overrides=overrides)
        batched = BatchedSampler(model, build("sampler", "euler", num_steps=2), schedule, compile=True)
        contender = Contender("checkpoint", SimpleNamespace(denoiser=model), batched, Path())  # type: ignore[arg-type]
        leave_uncompiled(contender)
        said.append(capsys.readouterr().out)
        assert contender.batched.compile == (not said[-1])
    assert said[0] == "" and said[1].count("\n") == 1
    assert said[1].startswith("compile=true: checkpoint is evaluated as it is written: this flow estimates ")


@pytest.mark.slow
def test_the_command(tmp_path: Path, graphs: Graphs) -> None:
    words = ("metrics=[bits_per_dim,nll_by_sigma]",)
    expected = measured(tmp_path / "eager", *words)
    assert not graphs
    values = measured(tmp_path / "compiled", *words, "compile=true")
    assert {key: entry["value"] for key, entry in values.items()} == pytest.approx(
        {key: entry["value"] for key, entry in expected.items()}, rel=1e-5
    )
    assert len(graphs) == 2, "log p, and D of the picture's samples"
