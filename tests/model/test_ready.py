"""Models that ship with the package: found by name, small, and as good as their cards say."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import flowdiff
from experiments.ready_models import __main__ as ready_models
from flowdiff.commands.export import export
from flowdiff.errors import ConfigError, FlowdiffError
from flowdiff.model import ready
from flowdiff.model.reading import read_safetensors
from tests.helpers.command_lines import Command
from tests.helpers.configs import composed
from tests.helpers.trained import checkpoint

each = pytest.mark.parametrize("name", ready.names())
MOST = 2_500_000  # bytes of all of them


def test_they_are_small_and_complete() -> None:
    assert ready.names() == sorted(ready_models.RECIPES) == ["digits", "two_moons"]
    kinds = {(file.stem, file.suffix) for file in ready.FOLDER.iterdir()}
    assert kinds == {(name, kind) for name in ready.names() for kind in (".safetensors", ".json", ".md")}
    assert sum(file.stat().st_size for file in ready.FOLDER.iterdir()) <= MOST


@each
def test_it_is_loaded_by_its_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = flowdiff.load(name)
    assert model.data == name and {p.dtype for p in model.parameters()} == {torch.float32}
    stored = read_safetensors(ready.FOLDER / f"{name}.safetensors")
    assert {stored[weight].dtype for weight, _ in model.denoiser.named_parameters()} == {torch.float16}
    facts = json.loads((ready.FOLDER / f"{name}.json").read_text())
    paths = [text for text in json.dumps(facts).split('"') if text.startswith("/")]
    assert paths == [] and "signature" not in facts, "nothing of the machine that made it"


@each
def test_its_card_says_what_was_measured(name: str) -> None:
    record = json.loads((ready_models.RESULTS / f"{name}.json").read_text())
    assert (ready.FOLDER / f"{name}.md").read_text() == ready_models.card(name, record)
    assert tuple(record["words"]) == ready_models.RECIPES[name].words
    assert record["bytes"] == (ready.FOLDER / f"{name}.safetensors").stat().st_size


@pytest.mark.slow
def test_by_name_on_the_command_line(command: Command, tmp_path: Path) -> None:
    """In an empty folder: samples, an evaluation, an export, a task."""
    short = ("num_steps=4", "sampler=heun")
    done = command("sample", "ckpt_path=digits", "class_label=3", "num_samples=4", "output_dir=drawn", *short)
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "drawn" / "samples.npz")["labels"].tolist() == [3] * 4
    done = command("evaluate", "ckpt_path=digits", "metrics=[bits_per_dim]", "output_dir=measured")
    assert done.returncode == 0, done.stderr
    ours = json.loads((tmp_path / "measured" / "metrics.json").read_text())["bits_per_dim"]["value"]
    recorded = json.loads((ready_models.RESULTS / "digits.json").read_text())["metrics"]["bits_per_dim"]["value"]
    assert ours == pytest.approx(recorded, abs=1e-4)
    done = command("export", "ckpt_path=two_moons", "output_dir=exported")
    assert done.returncode == 0 and (tmp_path / "exported" / "model.safetensors").is_file(), done.stderr
    done = command("sample", "ckpt_path=digits", "task=inpaint", "num_samples=2", "output_dir=filled", *short)
    assert done.returncode == 0, done.stderr


def test_what_is_there_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(checkpoint("toy"), "digits")
    assert flowdiff.load("digits").data == "two_moons"
    Path("digits").unlink()
    assert flowdiff.load("digits").data == "digits"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("digts", "no such file; ready models are digits, two_moons; did you mean digits?"),
        ("moons", "no such file; ready models are digits, two_moons; did you mean two_moons?"),
        ("digts.ckpt", "no such file"),
        ("./digits", "no such file"),
    ],
)
def test_a_name_that_is_none(word: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FlowdiffError) as caught:
        flowdiff.load(word)
    assert str(caught.value).startswith(f"ckpt_path={word}: {said}")


def test_an_export_in_half_precision(tmp_path: Path) -> None:
    words = (f"ckpt_path={checkpoint('digits')}", "half=true")
    export(composed("export", *words, f"output_dir={tmp_path}"))
    whole, half = flowdiff.load(checkpoint("digits")), flowdiff.load(tmp_path)
    for (name, ours), theirs in zip(
        half.denoiser.state_dict().items(), whole.denoiser.state_dict().values(), strict=True
    ):
        weight = name in dict(whole.denoiser.named_parameters())
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs.half().to(theirs) if weight else theirs), name
    with pytest.raises(ConfigError, match="half=true: is for format=safetensors, not diffusers"):
        export(composed("export", *words, "format=diffusers", f"output_dir={tmp_path}"))
