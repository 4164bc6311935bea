"""What a step asks of the machine has a budget: a crumb that comes back is one call of ATen more, on every machine."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.common.counting import count_calls, count_events, count_flop, count_kept
from experiments.common.spread import Spread
from experiments.speed import overhead, peers, sampling, steps, timing
from experiments.speed.__main__ import COLUMNS, main, report
from experiments.speed.models import build_model, step_of
from experiments.speed.modes import MODES
from experiments.speed.versions import HERE, Worker
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
    "pixelcnn_coupling": (992, 2532, 6034),
    "residual": (1129, 2780, 4337),
    "spectral": (921, 2460, 5727),
    "spline": (1593, 4167, 10905),
    "stack": (1520, 4149, 8743),
    "transformer": (871, 2174, 5417),
}
BASE_BUDGET = (108, 157, 267)
OF_OTHERS = {"zuko"}  # whose calls are another library's


def test_counts_are_those_of_a_product() -> None:
    weight, x = torch.randn(3, 3, requires_grad=True), torch.randn(2, 3)
    assert count_calls(lambda: x @ x.T) == 2, "a transpose and a product"
    assert count_events(lambda: x @ x.T) > 2, "what a transpose calls in its turn"
    assert count_flop(lambda: x @ x.T) == 2 * 2 * 2 * 3
    assert count_kept(lambda: (x @ weight).sum()) == 4 * 6, "x, by which the weight's gradient is taken"


@pytest.mark.slow
@pytest.mark.parametrize("flow", sorted({*choices("flow")} - OF_OTHERS))
def test_a_step_has_a_budget_of_calls(flow: str) -> None:
    check_budget(count_step(flow), BUDGET[flow])


@pytest.mark.slow
@pytest.mark.parametrize("base", sorted({*choices("base")} - {"normal"}))
def test_a_base_has_a_budget_of_calls_beside_the_normal(base: str) -> None:
    found, normal = count_step("linear", f"base={base}"), count_step("linear")
    check_budget(tuple(n - m for n, m in zip(found, normal, strict=True)), BASE_BUDGET)


def count_step(flow: str, *words: str) -> tuple[int, ...]:
    """Calls of a forward pass and of a step by either loss."""
    models = [build_model(flow, loss, "digits", CPU, *words) for loss in ("likelihood", "mixture")]
    steps = [step_of(model, model.loss) for model in models]
    for step in steps:
        step()  # the optimiser's moments are made
    return tuple(count_calls(work) for work in (models[0].log_prob, *steps))


def check_budget(found: tuple[int, ...], allowed: tuple[int, ...]) -> None:
    """Not more calls than allowed, and not so many fewer that the budget says nothing."""
    assert all(n <= most for n, most in zip(found, allowed, strict=True)), f"{found} calls, the budget is {allowed}"
    assert all(n > 0.9 * most for n, most in zip(found, allowed, strict=True)), f"lower the budget to {found}"


def test_works_take_turns_and_their_first_calls_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(timing, "seconds", lambda work, device: work() or float(len(done)))
    found = timing.time_in_turn({"a": lambda: done.append("a"), "b": lambda: done.append("b")}, 3, CPU)
    assert done == ["a", "b"] * 4
    assert found == {"a": [3.0, 5.0, 7.0], "b": [4.0, 6.0, 8.0]}
    assert timing.ratio(found["b"], found["a"]) == Spread(8 / 7, 6 / 5, 4 / 3), "of the same rounds"


def test_the_rates_are_those_of_what_is_timed() -> None:
    rates = timing.reference_rates({timing.PRODUCT: [2.0, 1.0], timing.CONVOLUTION: [1.0]})
    works = timing.build_references(CPU)
    assert rates == {name: count_flop(work) for name, work in works.items()}


def test_a_mode_that_was_not_measured_has_no_column(tmp_path: Path) -> None:
    row: dict[str, Any] = {"name": "a", "loss": "b", "gflop": 1.0, "eager": [1.0, 2.0, 3.0], "share": 0.5, "calls": 7}
    row |= {"events": 9, "score": None, "score_of_step": None, "kept": 1e6}
    report("steps", {"rows": [row]}, tmp_path / "a.md")
    header, _, line = (tmp_path / "a.md").read_text().splitlines()
    assert "compiled" not in header and "score" not in header and "2 (1–3)" in line
    row |= {"compiled": [1.0, 1.0, 1.0], "compiled_speed_up": [1.0, 2.0, 3.0], "compiled_making": 60.0}
    report("steps", {"rows": [row]}, tmp_path / "a.md")
    assert "| ms, compiled | × eager | s to make |" in (tmp_path / "a.md").read_text()


@pytest.mark.parametrize(
    "words", [["--parts", "stepps"], ["--modes", "slow"], ["--parts", "versions"], ["--modes", "graphed"]]
)
def test_a_wrong_part_or_mode_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(words)
    assert re.search("is not known|need each other|needs --device cuda", capsys.readouterr().err)


@pytest.mark.slow
def test_the_command_writes_what_it_measures(tmp_path: Path) -> None:
    assert main(["--parts", "steps", "--models", "linear", "--rounds", "1", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "cpu" / "steps-digits.md").read_text().count("linear") == len(steps.LOSSES)


@pytest.mark.slow
def test_a_worker_counts_what_is_counted_here() -> None:
    model = build_model("linear", "likelihood", "digits", CPU)
    step = MODES["eager"](model)
    step()
    with Worker(HERE) as worker:
        assert worker.ask(name="linear", loss="likelihood", dataset="digits")["calls"] == count_calls(step)
        assert 0 < worker.seconds(1) < 10


@pytest.mark.slow
@pytest.mark.parametrize("kind", peers.KINDS)
def test_peers_are_densities_of_the_same_numbers(kind: str) -> None:
    x = torch.randn(3, peers.DIM)
    for contender in peers.contenders(kind, len(x)).values():
        works = contender.works(x)
        assert contender.log_prob(x).shape == (3,)
        assert works["score"]().shape == works["sample"]().shape == x.shape  # type: ignore[attr-defined]


@pytest.mark.slow
def test_samplers_are_told_apart_from_the_denoiser() -> None:
    calls = Counter[str]()

    class Counting(sampling.Tiny):
        def forward(self, *given: Any, **named: Any) -> torch.Tensor:
            calls["all"] += 1
            return super().forward(*given, **named)

    row = sampling.overheads(Counting(), "heun", 1)
    assert row["nfe"] == 2 * sampling.STEPS - 1
    assert calls["all"] == row["nfe"] * (1 + 4 * 2), "the counted draw, and each of four works twice"


@pytest.mark.slow
def test_a_run_and_a_bare_loop_take_turns() -> None:
    row = overhead.measure_one(["experiment=digits", "flow=linear", "loss=likelihood"], 2)
    assert row["bare"].low > 0 and 0.3 < row["ratio"].median < 10
    assert set(COLUMNS["overhead"][0].text(row).split()) == {"experiment=digits", "flow=linear", "loss=likelihood"}
