"""What is imported when: torch alone to load a model, heavy libraries where they are needed, no torch for --help."""

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import flowdiff
from tests.helpers.command_lines import environment
from tests.helpers.trained import checkpoint

pytestmark = pytest.mark.slow

HEAVY = {
    "diffusers", "hydra", "lightning", "matplotlib", "omegaconf", "pandas", "pytorch_lightning", "sklearn",
    "tensorboard", "torch_fidelity", "torchmetrics", "torchvision", "transformers", "zuko",
}  # fmt: skip
#: What only torch is needed for.
WINGS = ("nn", "bijections", "flows", "data", "denoisers", "objectives", "samplers", "metrics", "model", "tasks")
#: Imported when they are used: they are what other libraries want to be given.
OF_OTHERS = {"flowdiff.metrics.torch_fidelity_adapter", "flowdiff.model.pipeline"}


def imported(code: str) -> set[str]:
    """The modules that a process of its own has imported after it has run this."""
    ask = f"{code}\nimport json, sys\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, env=environment(), timeout=240)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_a_model_is_loaded_by_torch_alone() -> None:
    found = imported(f"import flowdiff\nflowdiff.load({str(checkpoint('digits'))!r})")
    assert "flowdiff.denoisers.score_flow" in found
    assert sorted(found & (HEAVY | {"torch._dynamo", "sympy", "rich"})) == [], "torch itself imports none of them"


def test_the_wings_below_the_runs_need_torch_alone() -> None:
    names = [each.name for each in pkgutil.walk_packages(flowdiff.__path__, "flowdiff.")]
    names = [name for name in names if name.split(".")[1] in WINGS and name not in OF_OTHERS]
    assert len(names) > 100
    found = imported(f"import importlib\nfor name in {names}:\n    importlib.import_module(name)")
    assert set(names) <= found
    assert sorted(found & HEAVY) == []


def test_help_needs_no_torch() -> None:
    commands = [path.stem for path in Path(flowdiff.__file__).parent.glob("*.py") if "main()" in path.read_text()]
    assert {"train", "sample"} <= set(commands)
    found = imported(
        f"""
import contextlib, runpy, sys
for name in {commands}:
    sys.argv = [name, "--help"]
    with contextlib.suppress(SystemExit):
        runpy.run_module("flowdiff." + name, run_name="__main__")
"""
    )
    assert {f"flowdiff.commands.{name}" for name in commands if name != "__main__"} <= found
    assert sorted(found & {"torch", "numpy", "lightning", "matplotlib"}) == []


@pytest.mark.parametrize("words", [["--version"], ["--help"], []])
def test_the_list_of_commands_imports_no_other_library(words: list[str]) -> None:
    found = imported(f"import runpy, sys\nsys.argv[1:] = {words}\nrunpy.run_module('flowdiff', run_name='__main__')")
    libraries = {name.split(".")[0] for name in found} - sys.stdlib_module_names
    assert libraries - {"flowdiff"} == libraries_at_start(), "the start takes milliseconds"


def libraries_at_start() -> set[str]:
    """What a process of this environment has imported before it has run a line: by .pth files."""
    return {name.split(".")[0] for name in imported("")} - sys.stdlib_module_names
