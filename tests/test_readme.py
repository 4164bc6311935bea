"""What the README says works: its recipe for an activation, its table of groups, its commands."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.command_lines import environment
from tests.helpers.configs import composed

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


#: Command lines by one process, which imports torch once.
IN_TURN = """
import json, runpy, sys
for sys.argv in json.loads(sys.argv[1]):
    try:
        runpy.run_module(sys.argv[0], run_name="__main__")
    except SystemExit as done:
        if done.code:
            raise
"""


def block(language: str, containing: str) -> str:
    """The one code block of this language that holds these words."""
    (found,) = [b for b in re.findall(rf"```{language}\n(.*?)```", README, re.S) if containing in b]
    return found


@pytest.mark.slow
def test_an_activation_is_one_class_and_one_yaml(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(block("python", "class Arctan"))
    (tmp_path / "conf" / "activation").mkdir(parents=True)
    (tmp_path / "conf" / "activation" / "arctan.yaml").write_text(block("yaml", "Arctan"))

    small = ("flow.n_flows=2", "flow.width=16", "trainer.max_steps=3", "metrics=[]", "callbacks=minimal")
    sampling = ("ckpt_path=run/checkpoints/last.ckpt", "num_samples=2", "num_steps=2", "output_dir=out")
    own = ("--config-dir", "conf")
    commands = [
        ("flowdiff.train", *own, "activation=arctan", *small, "hydra.run.dir=run"),
        ("flowdiff.sample", *own, *sampling),
    ]
    result = subprocess.run(
        [sys.executable, "-c", IN_TURN, json.dumps(commands)],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "done"
    assert (tmp_path / "out" / "grid.png").is_file()


def test_the_table_of_groups_is_complete() -> None:
    table = README.split("## Configuration groups")[1].split("##")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", table, re.M))
    groups = {folder.name for folder in (ROOT / "conf").iterdir() if folder.is_dir()} - {"hydra"}
    assert set(rows) == groups
    for group in groups:
        choices = {file.stem for file in (ROOT / "conf" / group).glob("*.yaml")}
        named = set(re.findall(r"\w+", re.sub(r"\(.*?\)", "", rows[group])))
        assert named == choices, group


def commands() -> list[str]:
    lines = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.S)).splitlines()
    return [line.split("#")[0].strip() for line in lines if "-m flowdiff.train" in line]


@pytest.mark.parametrize("command", commands())
def test_the_commands_compose(command: str) -> None:
    words = shlex.split(command)
    words = words[words.index("flowdiff.train") + 1 :]
    sweep = "--multirun" in words
    overrides = [w.split(",")[0] if sweep else w for w in words if not w.startswith("--")]
    assert composed("config", *overrides)


def test_pictures_and_links_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
