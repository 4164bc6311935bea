"""The benchmarks: densities of other libraries' flows, budgets in seconds, results that are kept, tables."""

import csv
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from experiments.benchmarks import contenders, fit, flows
from experiments.benchmarks.peers import Peer
from experiments.common import budget
from experiments.common.configurations import flow_names
from experiments.common.results import Contender, Results
from experiments.flow_table import __main__ as flow_table
from flowdiff.data.digits import Digits
from flowdiff.errors import FlowdiffError
from flowdiff.model.vocabulary import config_dir
from tests.helpers import forked
from tests.helpers.command_lines import environment

ENTRIES = OmegaConf.to_container(OmegaConf.load(contenders.FILE))
assert isinstance(ENTRIES, dict)
#: Sizes of the peers' models in tests, by class.
SMALL = {
    "Zuko": {"flow": {"hidden_features": [16], "transforms": 2}},
    "NflowsRQNSF": {"steps": 2, "hidden": 8},
    "NormflowsGlow": {"levels": 1, "steps": 2, "hidden": 8},
}
TINY = ["flow.n_flows=2", "flow.width=16", "flow.depth=1", "num_steps=2", "conditioning.sigma_embed_dim=8"]


def small(name: str) -> dict[str, Any]:
    """A peer's entry with a small model."""
    entry = ENTRIES["peers"][name]
    sizes = SMALL[entry["model"]["_target_"].split(".")[-1]]
    model = OmegaConf.to_container(OmegaConf.merge(entry["model"], sizes))
    return {key: value for key, value in entry.items() if key != "mnist"} | {"model": model}


def small_peer(name: str, shape: tuple[int, ...] = (1, 2, 2), classes: int = 3, disturbed: bool = True) -> Peer:
    """A small peer, away from its initialisation, in eval mode, on pixels with a mean and a scale."""
    torch.manual_seed(0)
    entry = small(name)
    peer = instantiate(entry["model"], shape=shape, num_classes=classes if entry["given_class"] else 0, _convert_="all")
    assert isinstance(peer, Peer)
    peer.mean.copy_(torch.linspace(-0.5, 0.5, peer.dim))
    peer.scale.copy_(torch.linspace(0.3, 0.6, peer.dim))
    if disturbed:
        peer.log_prob(torch.randn(64, *shape) * 0.4, 0.002, labels_of(peer, 64))  # Glow's actnorms take their scale
        with torch.no_grad():
            for parameter in peer.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return peer.eval()


def labels_of(peer: Peer, n: int) -> Tensor | None:
    return torch.full((n,), 2) if peer.num_classes else None


def gaussian(peer: Peer, width: float) -> torch.distributions.Independent:
    """A normal distribution around the peer's mean, `width` times as wide as its pixels."""
    return torch.distributions.Independent(torch.distributions.Normal(peer.mean, width * peer.scale), 1)


@pytest.mark.parametrize("name", ENTRIES["peers"])
@torch.no_grad()
def test_a_peer_integrates_to_one(name: str) -> None:
    """E_q[p(x)/q(x)] = 1 for a broad q."""
    peer, broad = small_peer(name), gaussian(small_peer(name), 2.0)
    n = 40_000
    x = broad.sample((n,))
    log_ratio = peer.log_prob(x.reshape(n, 1, 2, 2), 0.002, labels_of(peer, n)) - broad.log_prob(x)
    assert log_ratio.std() > 0.1
    assert log_ratio.exp().mean().item() == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("name", ENTRIES["peers"])
@torch.no_grad()
def test_a_peer_samples_from_its_density(name: str) -> None:
    """E_p[g(x)/p(x)] = 1 for a narrow normalised g: the samples have the density that log_prob says."""
    peer, narrow = small_peer(name), gaussian(small_peer(name), 0.5)
    n = 40_000
    torch.manual_seed(1)
    x = peer.sample(n, labels_of(peer, n))
    assert x.shape == (n, 1, 2, 2)
    ratio = (narrow.log_prob(x.flatten(1)) - peer.log_prob(x, 0.002, labels_of(peer, n))).exp()
    assert ratio.mean().item() == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES["peers"].items() if entry["given_class"]])
def test_a_class_conditional_peer_looks_at_the_class(name: str) -> None:
    peer = small_peer(name)
    x = torch.randn(5, 1, 2, 2)
    zero, one = (peer.log_prob(x, 0.002, torch.full((5,), c)) for c in (0, 1))
    assert not torch.allclose(zero, one)


def test_pixels_are_standardised_with_their_noise() -> None:
    data, peer = Digits(), small_peer("zuko_maf", (1, 8, 8), disturbed=False)
    peer.standardise(data, sigma_min=0.3)
    x = torch.cat([data.to_model(data.images("train")[0]) for _ in range(20)])
    u = ((x + 0.3 * torch.randn_like(x)).flatten(1) - peer.mean) / peer.scale
    torch.testing.assert_close(u.mean(0), torch.zeros(64), atol=0.03, rtol=0)
    torch.testing.assert_close(u.std(0), torch.ones(64), atol=0.03, rtol=0)


# -- training of peers ---------------------------------------------------------------------------------------


def test_a_fit_learns_and_keeps_its_best_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen, rates = fit.measured, [], []

    def measured(metrics: Any, model: Any) -> Any:
        found = real(metrics, model) if len(seen) < 3 else {"bits_per_dim": {"value": 99.0}}
        seen.append(found["bits_per_dim"]["value"])
        return found

    class Recorded(torch.optim.Adam):
        def step(self, *args: Any) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(*args)

    monkeypatch.setattr(fit, "measured", measured)
    data, peer = Digits(), small_peer("zuko_maf_class", (1, 8, 8), classes=10, disturbed=False)
    found = fit.fit(peer, data, 0.002, 1.2, lambda p: Recorded(p, lr=2e-3), clip=1.0)
    assert found["steps"] == len(rates) and found["left_out"] == 0
    assert 1.2 <= found["seconds"] < 2.5
    assert rates[0] == 2e-3 and rates[-1] < 4e-4 and rates == sorted(rates, reverse=True)
    assert len(seen) > 3 and found["validation"] == min(seen) == seen[2] < seen[0]
    again = real({"bits": fit.BitsPerDim()}, fit.evaluand(peer, data, 0.002, 0, "val"))["bits_per_dim"]["value"]
    assert again == pytest.approx(found["validation"], abs=1e-6)
    assert not peer.training


class Broken(Peer):
    """Its likelihood is never finite."""

    def __init__(self) -> None:
        super().__init__((1, 8, 8), 0)
        self.weight = torch.nn.Parameter(torch.ones(()))

    def flow_log_prob(self, u: Tensor, labels: Tensor | None) -> Tensor:
        return u.sum(1) * self.weight * math.nan


def test_a_peer_without_a_finite_likelihood_is_an_error() -> None:
    peer = Broken()
    with pytest.raises(FlowdiffError, match=r"no finite likelihood .* left out"):
        fit.fit(peer, Digits(), 0.002, 0.2, lambda p: torch.optim.Adam(p))
    assert peer.weight == 1


def test_batches_carry_the_noise_of_sigma_min() -> None:
    data = Digits(batch_size=1257)
    clean, noisy = (next(fit.batches(data, sigma)) for sigma in (0.0, 0.5))
    assert clean[0].abs().max() <= 1
    added = noisy[0].square().mean() - clean[0].square().mean()
    assert added.item() == pytest.approx(0.25, abs=0.02)


# -- the budget of flowdiff's own runs -------------------------------------------------------------------------


def test_seconds_are_read_from_the_log(tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    OmegaConf.save({"trainer": {"log_every_n_steps": 10}, "dataset": {"batch_size": 64}}, tmp_path / "config.yaml")
    rows = "step,train/images_per_second,val/loss\n10,320.0,\n10,,1.5\n20,1280.0,\n"
    (tmp_path / "csv" / "metrics.csv").write_text(rows)
    assert budget.read_windows(tmp_path) == ([2.0, 0.5], 10)


@pytest.mark.slow
def test_a_command_that_fails_is_its_last_line(tmp_path: Path) -> None:
    with pytest.raises(FlowdiffError, match=r"^nowhere: no such folder; "):
        budget.run_module("flowdiff.collect", ["nowhere"], tmp_path / "log", 100)
    with pytest.raises(FlowdiffError, match="^stopped after 0 s"):
        budget.run_module("flowdiff.collect", ["nowhere"], tmp_path / "log", 0.01)


# -- the commands -----------------------------------------------------------------------------------------------


def read(file: Path) -> dict[str, dict[str, str]]:
    """A table's rows by model."""
    return {row["model"]: row for row in csv.DictReader(file.open(newline=""))}


@pytest.mark.slow
def test_a_benchmark_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def run(call: list[str], stdout: BinaryIO, stderr: int, timeout: float) -> subprocess.CompletedProcess[str]:
        assert call[:2] == [sys.executable, "-m"] and stderr == subprocess.STDOUT
        log = Path(stdout.name)
        return forked.run(call[2], call[3:], tmp_path, environment(), (log, log), timeout)

    monkeypatch.setattr(budget.subprocess, "run", run)
    listed = {
        "flowdiff": {"ours": TINY, "wrong": ["flow=nope"], "elsewhere": {"mnist": []}},
        "peers": {"theirs": small("zuko_maf_class")},
    }
    OmegaConf.save(listed, "contenders.yaml")
    words = ["--seconds", "1", "--out", "out", "--contenders", "contenders.yaml"]
    assert flows.main(words) == 0

    rows = read(tmp_path / "out" / "digits.csv")
    assert list(rows) == ["ours", "wrong", "theirs"]
    assert rows["wrong"]["error"].startswith("flow=nope: must be one of ")
    for name in ("ours", "theirs"):
        row = rows[name]
        assert row["error"] == "" and row["given_class"] == "yes"
        assert 1 < float(row["bits_per_dim"]) < 15
        assert float(row["fd"]) > 0 and 0 <= float(row["recognised"]) <= 1
        assert float(row["fd_real"]) == pytest.approx(0.8608, abs=1e-3)
        assert 0.3 < float(row["seconds"]) < 3 and int(row["steps"]) > 5
        assert float(row["seconds_per_100"]) > 0
    assert float(rows["ours"]["denoising_1"]) > 0 and rows["theirs"]["denoising_1"] == ""
    assert (rows["ours"]["sampler"], rows["theirs"]["sampler"]) == ("ancestral", "inverse")
    run = Path(json.loads((tmp_path / "out" / "digits" / "ours.json").read_text())["run"])
    config = OmegaConf.load(run / "config.yaml")
    steps = int(rows["ours"]["steps"])
    assert config.decay_steps == config.trainer.max_steps == steps
    log = list(csv.DictReader((run / "csv" / "metrics.csv").open(newline="")))
    validations = [int(row["step"]) for row in log if row["val/loss"]]
    assert len(validations) == 4 and validations[-1] == steps

    text = (tmp_path / "out" / "digits.md").read_text()
    assert "| wrong | – |" in text and "bits/dim given the class: " in text
    picture = (tmp_path / "out" / "digits.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 10_000

    capsys.readouterr()
    for kind in (Contender, contenders.PeerContender):
        monkeypatch.setattr(kind, "run", lambda *_: pytest.fail("measured again"))
    assert flows.main([*words, "--models", "ours,theirs"]) == 0
    assert capsys.readouterr().out.count("done already") == 2
    assert list(read(tmp_path / "out" / "digits.csv")) == ["ours", "wrong", "theirs"]


def test_a_name_that_does_not_take_part_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert flows.main(["--models", "coupling,glue", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("--models=glue: must be among coupling, ")
    assert flows.main(["--seconds", "0", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "--seconds=0.0: must be a number above 0\n"


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Contenders run in no time; the names of those that did."""
    names: list[str] = []

    def run(self: Contender, folder: Path, limit: float) -> dict[str, Any]:
        names.append(self.name)
        if self.name == "linear":
            raise FlowdiffError("two\nlines")
        metrics = {"bits_per_dim": {"value": 2.5, "n": 3, "standard_error": 0.01}}
        metrics["denoising_ratio/1"] = {"value": 0.9, "n": 3}
        metrics["fd_mlp_digits"] = {"value": 1.25, "n": 360, "sampler": "ancestral", "nfe": 64.0}
        return {"metrics": metrics, "parameters": 1234, "steps": 10, "seconds": 119.6, "seconds_per_100": 0.5}

    monkeypatch.setattr(Contender, "run", run)
    yield names


def test_the_table_of_flows_has_every_flow(tmp_path: Path, runs: list[str]) -> None:
    words = ["--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs")]
    assert flow_table.main(words) == 0
    names = flow_names()
    assert runs == names
    rows = read(tmp_path / "out" / "flows.csv")
    assert list(rows) == names
    assert rows["linear"]["error"] == "two lines" and rows["linear"]["bits_per_dim"] == ""
    assert rows["coupling"]["bits_per_dim"] == "2.5" and rows["coupling"]["denoising_1"] == "0.9"
    text = (tmp_path / "out" / "flows.md").read_text()
    assert "| coupling | 2.500 | 1.25 | 0.900 | 1,234 | 0.1 | 10 | 120 | ancestral | 64 | 0.5 | – |" in text
    assert text.startswith("A budget of 120 seconds of training each") and "of which they took 120 to 120" in text
    flow_table.main(words)
    assert runs == [*names, "linear"]  # only the error is tried anew


def test_a_result_answers_its_request_only(tmp_path: Path, runs: list[str]) -> None:
    results = Results(tmp_path, tmp_path / "runs", say=lambda _: None)
    first = Contender("coupling", "flowdiff", ["flow=coupling"], "digits", 120.0, 0)
    results.get(first)
    results.get(first)
    assert runs == ["coupling"]
    others = {"settings": ["flow=coupling", "lr=1"], "seconds": 60.0, "seed": 1}
    for key, value in others.items():
        changed = Contender(**(first.request | {key: value}))
        assert results.read(changed) is None
        results.get(changed)
    results.again = True
    results.get(changed)
    assert len(runs) == 5


def test_who_leads_is_said() -> None:
    def result(name: str, kind: str, given: bool, **values: float) -> dict[str, Any]:
        metrics = {key.replace("__", "/"): {"value": value} for key, value in values.items()}
        return {"request": {"name": name, "kind": kind}, "given_class": given, "metrics": metrics, "error": None}

    lines = flows.who_leads(
        [
            result("a", "flowdiff", True, bits_per_dim=2.5, recognised=0.9, denoising_ratio__1=0.9),
            result("b", "flowdiff", True, bits_per_dim=2.25, recognised=0.8, denoising_ratio__1=0.8),
            result("c", "peer", True, bits_per_dim=2.4, recognised=0.85),
            result("d", "flowdiff", False, bits_per_dim=2.6, denoising_ratio__1=0.1),
            result("e", "peer", False, bits_per_dim=2.5),
            result("f", "baseline", True, recognised=0.5, denoising_ratio__1=0.7),
        ]
    )
    assert lines == [
        "* bits/dim given the class: flowdiff leads, b 2.250 to c 2.400.",
        "* bits/dim without the class: **flowdiff loses**, d 2.600 to e 2.500.",
        "* recognised share: flowdiff leads, a 90.0% to c 85.0%.",
        "* denoising error at σ = 1: **flowdiff loses**, b 0.800 to f 0.700.",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("dataset", contenders.DATASETS)
def test_every_contender_composes(dataset: str) -> None:
    everyone = contenders.contenders(dataset, 120.0, 0)
    assert {c.kind for c in everyone} == {"flowdiff", "baseline", "peer"}
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        for contender in everyone:
            if contender.kind != "peer":
                assert compose("config", overrides=[f"experiment={dataset}", *contender.settings])
