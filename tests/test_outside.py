"""Additions from outside the package: one class and one YAML file each, on the command line and in a notebook."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch

import flowdiff
from flowdiff import training
from flowdiff.commands.train import request_of
from flowdiff.evaluation.measurement import evaluate
from flowdiff.evaluation.request import EvaluateRequest
from flowdiff.model import vocabulary
from flowdiff.options import Recipe
from tests.helpers.command_lines import BARE, Command, run_folders

#: A class of each kind, as a user would write it.
CLASSES = '''
import torch
from torch import nn

from flowdiff.bijections import Activation
from flowdiff.data import ImageData
from flowdiff.flows import Flow
from flowdiff.metrics import Metric, Result
from flowdiff.objectives import Denoising, NoiseDistribution
from flowdiff.quantities import Quantity
from flowdiff.samplers import Geometric, Sampler


class Arctan(Activation):
    def raw(self, x):
        return torch.atan(x)

    def raw_slope(self, x):
        return 1 / (1 + x.square())


class Scale(Flow):
    """z = exp(κ·s)·x."""

    def __init__(self, shape, context_dim, activation):
        super().__init__()
        self.s = nn.Parameter(torch.zeros(shape))
        self.activation = activation()

    def _log_scale(self, context):
        return context.kappa.reshape(-1, *[1] * self.s.dim()) * self.s

    def forward(self, x, context):
        s = self._log_scale(context)
        return s.exp() * x, s.flatten(1).sum(1)

    def inverse(self, z, context):
        return z * (-self._log_scale(context)).exp()


class Halfway(Sampler):
    """Euler's method with half steps of its own."""

    def step(self, denoise, noise, x, sigma, to):
        return x + (to - sigma) / sigma * (x - denoise(x, sigma))


class Steep(Geometric):
    def warp(self, sigma):
        return sigma.log() ** 3

    def unwarp(self, value):
        return (value.abs() ** (1 / 3) * value.sign()).exp()


class Brightness(Metric):
    quantities = (Quantity("brightness", better="higher", plotted="brightness"),)

    def num_needed(self, model):
        return 8

    def __call__(self, model):
        x, _ = model.samples(8)
        return {"brightness": Result(float(x.mean()), 8, model.conditions() | model.sample_conditions)}


class Stripes(ImageData):
    def __init__(self, batch_size=8, seed=0):
        super().__init__("stripes", (1, 4, 4), 2, 16, batch_size=batch_size, seed=seed)

    def load(self):
        y = torch.arange(40) % 2
        k = (15 * (torch.arange(4) % 2)).expand(40, 1, 4, 4) * y.view(-1, 1, 1, 1)
        k = (k + torch.arange(40).view(-1, 1, 1, 1) % 2).clamp(max=15).to(torch.uint8)
        return {"train": (k, y), "val": (k[:16], y[:16]), "test": (k[:16], y[:16])}


class Plain(Denoising):
    pass


class Once(NoiseDistribution):
    def __call__(self, n, device="cpu"):
        return torch.full((n,), 0.5, device=device)
'''
#: What its YAML file says, by group.
FILES = {
    "activation/arctan": "_target_: mine.Arctan\n_partial_: true\nleak: 0.1\n",
    "flow/scale": "_target_: mine.Scale\n_partial_: true\nactivation: ${activation}\n",
    "sampler/halfway": "_target_: mine.Halfway\nnum_steps: ${num_steps}\n",
    "schedule/steep": "_target_: mine.Steep\nsigma_min: ${sigma_min}\nsigma_max: ${sigma_max}\n",
    "metrics/brightness": "brightness:\n  _target_: mine.Brightness\n",
    "dataset/stripes": "_target_: mine.Stripes\nbatch_size: 8\nseed: ${seed}\n",
    "loss/plain": "_target_: mine.Plain\n",
    "noise/once": "_target_: mine.Once\n",
}
WORDS = [f"{group}={name}" for group, name in (path.split("/") for path in FILES) if group != "metrics"]
SHORT = ["trainer.max_steps=2", "trainer.val_check_interval=2", "num_steps=3", "callbacks=minimal", "logger=csv"]


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with mine.py and the folder of its YAML files, ``conf``."""
    (tmp_path / "mine.py").write_text(CLASSES)
    for path, text in FILES.items():
        file = tmp_path / "conf" / f"{path}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setattr(vocabulary, "_further", {})
    monkeypatch.setattr(vocabulary, "_said", {})
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


def test_each_kind_on_the_command_line(outside: Path, command: Command) -> None:
    mine = ["--config-dir", "conf"]
    done = command("train", *mine, *WORDS, *SHORT, "metrics=[brightness]")
    assert done.returncode == 0, done.stderr
    (run,) = run_folders(outside)
    entry = json.loads((run / "metrics.json").read_text())["brightness"]
    assert entry["n"] == 8 and entry["better"] == "higher" and entry["sampler"] == "halfway"
    ckpt = f"ckpt_path={run}/checkpoints/last.ckpt"
    done = command("sample", *mine, ckpt, "num_samples=4", "sampler=halfway", "num_steps=2", "output_dir=drawn")
    assert done.returncode == 0 and "halfway, steep, 2 steps" in done.stdout, done.stderr
    done = command("evaluate", *mine, ckpt, "metrics=[brightness,denoising]", "output_dir=measured")
    assert done.returncode == 0 and "brightness" in done.stdout, done.stderr
    done = command("sample", ckpt)
    assert done.returncode == 1 and "give --config-dir" in done.stderr and len(done.stderr.splitlines()) == 1
    done = command("sample", *mine, ckpt, "sampler=half")
    assert "halfway" in done.stderr and len(done.stderr.splitlines()) == 1


def test_each_kind_in_a_notebook(outside: Path) -> None:
    words = [*WORDS, *SHORT, *BARE[:1], "metrics=[brightness]", f"run_dir={outside}/run"]
    result = training.train(request_of(*words, config_dir=str(outside / "conf")))
    assert result["metrics"]["brightness"]["n"] == 8
    model = flowdiff.load(result["last"], config_dir=outside / "conf")
    assert model.sample(2, num_steps=2, quiet=True).shape == (2, 1, 4, 4)
    assert model.sample(2, sampler="halfway", num_steps=2, quiet=True).isfinite().all()


def test_objects_of_ones_own_classes(outside: Path) -> None:
    sys.path.insert(0, str(outside))
    mine = __import__("mine")
    model = flowdiff.load(Path(__file__).parent / "model" / "format_1" / "score_flow.ckpt")
    own = model.sample(2, sampler=mine.Halfway(4), schedule=mine.Steep(0.01, 20.0), quiet=True)
    assert own.isfinite().all() and own.shape == (2, 1, 8, 8)
    request = EvaluateRequest(
        ckpt_path=str(Path(__file__).parent / "model" / "format_1" / "score_flow.ckpt"),
        output_dir=str(outside / "measured"),
        sampler=mine.Halfway(3),
        metrics={"mine": mine.Brightness()},  # type: ignore[dict-item]
    )
    assert evaluate(request)["metrics"]["brightness"]["sampler"] == "halfway"
    train = request_of(*SHORT, "metrics=[]", "evaluate=null", "flow=linear", f"run_dir={outside}/run")
    train.dataset, train.sampler = Recipe("dataset", mine.Stripes()), Recipe("sampler", mine.Halfway(3))
    last = training.train(train)["last"]
    config = flowdiff.load(last, config_dir=outside / "conf").config
    assert config["sampler"] == {"_target_": "mine.Halfway", "num_steps": 3}
    assert config["dataset"]["_target_"] == "mine.Stripes" and os.path.isfile(last)
    assert torch.isfinite(flowdiff.load(last, config_dir=outside / "conf").sample(2, quiet=True)).all()
