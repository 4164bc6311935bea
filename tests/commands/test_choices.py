"""The choices in conf/ and in the user's own folder: in --help, in errors, in a run that goes on. None is left out."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowdiff.commands import composition, error_messages
from flowdiff.errors import FlowdiffError
from flowdiff.model import vocabulary
from flowdiff.training import run as training
from tests.helpers.command_lines import Run
from tests.helpers.configs import CONF
from tests.helpers.trained import checkpoint, edited

COMMANDS = ("train", "sample", "evaluate", "export")
GROUPS = {folder.name for folder in CONF.iterdir() if folder.is_dir()} - {"hydra"}
DESCRIBED = {"sample": ("sampler", "schedule", "task"), "evaluate": ("metrics",)}


def names_in(folder: Path) -> set[str]:
    return {file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml")}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder of configurations with a choice `mine` of each group."""
    folder = tmp_path / "my conf, a=1"
    for group in GROUPS:
        (folder / group).mkdir(parents=True)
        (folder / group / "mine.yaml").write_text("# Costs $5, and ${nothing}.\n_target_: mine.Mine\n")
    node = "_target_: flowdiff.samplers.Heun\nnum_steps: ${num_steps}\ns_churn: 7.0\n"
    (folder / "sampler" / "mine.yaml").write_text(f"# Costs $5, and ${{nothing}}.\n{node}")
    return folder


def rows(lines: list[str]) -> dict[str, str]:
    """A table of two columns: what stands in the second, by the first."""
    found: dict[str, str] = {}
    for line in lines:
        if line and not line.startswith("  "):
            break
        if re.match(r"  \S", line):
            name, _, said = line.strip().partition(" ")
            found[name] = said.strip()
        elif line.strip():
            found[list(found)[-1]] += " " + line.strip()
    return found


@pytest.mark.parametrize("with_own", [False, True])
@pytest.mark.parametrize("name", DESCRIBED)
def test_help_describes_each_choice(name: str, with_own: bool, own: Path, command: Callable[..., Any]) -> None:
    done = command(name, "--help", *(["--config-dir", str(own)] if with_own else []))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for group in DESCRIBED[name]:
        (start,) = (i for i, line in enumerate(lines) if re.match(rf"{group}= ", line))
        found = rows(lines[start + 1 :])
        assert set(found) == names_in(CONF / group) | ({"mine"} if with_own else set())
        assert found.get("mine", "Costs $5, and ${nothing}.") == "Costs $5, and ${nothing}."
        assert all(len(said) > 10 for said in found.values()), "each file begins with what it is"


@pytest.mark.parametrize("with_own", [False, True])
def test_help_of_training_lists_each_choice(with_own: bool, own: Path, command: Callable[..., Any]) -> None:
    done = command("train", "--help", *(["--config-dir", str(own)] if with_own else []))
    lines = done.stdout.splitlines()
    found = rows(lines[next(i for i, line in enumerate(lines) if line.startswith("Choices")) + 1 :])
    assert set(found) == GROUPS - {"task"}
    for group, said in found.items():
        assert set(said.split(", ")) == names_in(CONF / group) | ({"mine"} if with_own else set()), group


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_plain_lines_and_has_the_keys(name: str, command: Callable[..., Any]) -> None:
    out = command(name, "--help").stdout
    assert out.startswith("flowdiff: ") and out.count(f"python -m flowdiff.{name} ") >= 4
    assert max(map(len, out.splitlines())) <= 120
    shown = command(name, "--cfg", "job").stdout
    assert "ckpt_path: null\n" in shown and shown in out
    assert 'eval "$(python -m flowdiff -sc install=bash)"' in out


def test_keys_of_several_commands_stand_once() -> None:
    """Each line of YAML that two commands on a checkpoint share is in a file that both take in."""
    files = [(CONF / f"{name}.yaml").read_text().splitlines() for name in ("sample", "evaluate", "export")]
    keys = [{line.partition(":")[0] for line in lines if re.match(r"\w+:", line)} for lines in files]
    assert keys[0] & keys[1] == {"defaults", "hydra", "output_dir", "batch_size"}, "whose values differ"
    assert keys[0] & keys[2] == keys[1] & keys[2] == {"defaults", "hydra", "output_dir"}


def test_errors_know_the_users_choices(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "_further", {})
    vocabulary.add_folder(own)

    def line(*words: str) -> str | None:
        with pytest.raises(Exception) as caught:  # noqa: B017, PT011
            composition.compose(words, "config")
        return error_messages.explain(caught.value, words, "config", composing=True)

    names = ", ".join(sorted(names_in(CONF / "sampler") | {"mine"}))
    assert line("sampler=foo") == f"sampler=foo: must be one of {names}"
    assert line("sampler=mime") == f"sampler=mime: must be one of {names}; did you mean sampler=mine?"
    said = line("sampler=mine", "sampler.s_chorn=1")
    assert said == "sampler.s_chorn=1: unknown key; sampler has num_steps, s_churn; did you mean sampler.s_churn=1?"


def test_choices_that_words_lead_to(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "_further", {})
    with pytest.raises(Exception, match="mine"):
        composition.find_choices(["sampler=mine"], "config")
    vocabulary.add_folder(own)
    found = composition.find_choices(["experiment=mnist", "flow=spline", "sampler=mine"], "config")
    assert found["experiment"] == found["dataset"] == "mnist"
    assert found["flow"] == "spline" and found["sampler"] == "mine" and "autoencoder" not in found


@pytest.mark.slow
def test_a_run_that_goes_on_has_the_choices_of_its_own_words(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(content: dict[str, Any]) -> None:
        content["flowdiff"]["overrides"] += ["flow=spline", "sampler=heun"]

    told: list[Any] = []

    def train(request: Any, command_line: Any, content: Any) -> None:
        told.append(command_line)
        raise FlowdiffError("enough")

    path = edited(checkpoint("digits"), tmp_path / "last.ckpt", change)
    monkeypatch.setattr(training, "train", train)
    assert run("train", f"ckpt_path={path}", "sampler=euler")[::2] == (1, "enough\n")
    assert run("train", "flow=linear")[::2] == (1, "enough\n")
    going_on, new = told
    assert [going_on.choices[group] for group in ("flow", "sampler")] == ["spline", "euler"]
    assert [new.choices[group] for group in ("flow", "sampler")] == ["linear", "ancestral"]
