"""--help, --cfg and tab completion."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig

from flowdiff import __version__
from flowdiff.__main__ import COMMANDS
from flowdiff.commands import tab_completion
from flowdiff.model import vocabulary
from flowdiff.model.vocabulary import config_dir
from tests.helpers.command_lines import BARE, TINY, Command, Run, environment, run_folders, status


@pytest.mark.slow
def test_configuration_and_completion(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = run("train", "--cfg", "job", "flow=linear")
    assert code == 0
    assert "_target_: flowdiff.flows.LinearFlow" in out
    line = "python -m flowdiff.train activation=s"
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    code, out, _ = run("train", "-sc", "query=bash")
    assert code == 0
    assert set(out.split()) == {"activation=softplus", "activation=spline", "activation=swish"}
    assert not HydraConfig.initialized(), "what runs next in this process would take itself for a job of this command"


BASH = """
eval "$(python -m flowdiff.train -sc install=bash)"
COMP_LINE="{line}" COMP_POINT=${{#COMP_LINE}} COMP_CWORD={last}
flowdiff_completion
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
ZSH = """
compdef() {{}}
compadd() {{ print -l -- ${{argv[argv[(i)--]+1,-1]}} }}
_files() {{}}
eval "$(flowdiff --shell-completion install=zsh)"
words=({line}) CURRENT=$((1 + {last}))
_flowdiff
"""
FISH = """
flowdiff -sc install=fish | source
complete -C "{line}"
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shell", "script"), [("bash", BASH), ("zsh", ZSH), ("fish", FISH)], ids=["bash", "zsh", "fish"]
)
@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("flowdiff train flow.n", {"flow.n_flows="}),
        ("flowdiff sample num_s", {"num_samples=", "num_steps="}),
        ("flowdiff exp", {"export"}),
        ("python -m flowdiff.train flow.n", {"flow.n_flows="}),
        ("python -m flowdiff.dashboard no", set()),
    ],
)
def test_tab_completion_in_a_shell(shell: str, script: str, line: str, found: set[str], tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")
    if shell != "bash" and line.startswith("python"):
        pytest.skip("of python -m bash alone completes")
    for name, words in (("python", ""), ("flowdiff", "-m flowdiff")):
        (tmp_path / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        (tmp_path / name).chmod(0o755)
    env = environment() | {"HOME": str(tmp_path)}
    env["PATH"] = f"{tmp_path}{os.pathsep}{env['PATH']}"
    filled = script.format(line=line, last=len(line.split()) - 1)
    done = subprocess.run([shell, "-c", filled], env=env, cwd=tmp_path, capture_output=True, text=True)
    offered = {word for word in done.stdout.split() if word.startswith(line.split()[-1])}  # zsh and fish choose
    assert offered == found, done.stdout + done.stderr


def test_the_configuration_is_found_by_its_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert (config_dir() / "config.yaml").is_file()
    assert os.path.isabs(config_dir())
    package = tmp_path / "site-packages" / "flowdiff"
    (package / "conf").mkdir(parents=True)
    (package / "conf" / "config.yaml").touch()
    monkeypatch.setattr(vocabulary, "__file__", str(package / "model" / "vocabulary.py"))
    assert config_dir() == package / "conf"


def flowdiff(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`python -m flowdiff WORDS`."""
    line = [sys.executable, "-m", "flowdiff", *words]
    return subprocess.run(line, capture_output=True, text=True, env=environment(), cwd=cwd, timeout=240)


def test_the_package_lists_its_commands() -> None:
    """`python -m flowdiff` names each file beside it that starts a command."""
    done = flowdiff()
    package = Path(vocabulary.__file__).parent.parent
    starts = {file.stem for file in package.glob("*.py") if "import main" in file.read_text()}
    assert starts == set(COMMANDS) == set(tab_completion.FIRST.split()) - {"--help", "--version"}
    assert starts == {line.split("python -m flowdiff.")[1].split()[0] for line in done.stdout.splitlines()[:-1]}
    assert done.stdout == flowdiff("--help").stdout
    assert flowdiff("--version").stdout == f"flowdiff {__version__}\n"


@pytest.mark.parametrize(
    ("word", "meant"),
    [("trian", "; did you mean flowdiff train?"), ("flow=linear", ""), ("--verzion", "")],
)
def test_an_unknown_command_is_one_line(word: str, meant: str) -> None:
    done = flowdiff(word, "flow=linear")
    assert (done.returncode, done.stdout) == (2, "")
    allowed = "train, sample, evaluate, export, collect, report, dashboard, --help, --version"
    assert done.stderr == f"{word}: must be one of {allowed}{meant}\n"


def test_a_shell_without_a_rule(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        tab_completion.answer(["-sc", "install=tcsh"])
    assert str(left.value) == "install=tcsh: must be one of bash, zsh, fish"


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("train", "--cfg", "job", "flow=linear", "--config-dir", "mine"),
        ("train", "flow=liner"),
        ("train", "--multirun", "seed=0,1", "--cfg", "hydra", "--package", "hydra.sweeper"),
        ("sample", "--help"),
        ("sample", "ckpt_path=nowhere.ckpt"),
        ("collect", "--help"),
        ("collect", "nowhere"),
        ("report", "nowhere"),
        ("dashboard", "nowhere"),
    ],
)
def test_one_command_is_the_module(words: tuple[str, ...], command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    one, module = command("__main__", *words), command(*words)
    said = [re.sub(r"\d{2}-\d{2}-\d{2}\.\d+", "TIME", f"{done.stdout}{done.stderr}") for done in (one, module)]
    assert said[0] == said[1] and said[0] and one.returncode == module.returncode


@pytest.mark.slow
def test_a_sweep_by_the_one_command(tmp_path: Path) -> None:
    """Its jobs run in processes of joblib, which start the command's own module."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = [*TINY, *BARE, "trainer.max_steps=1", "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    done = flowdiff("train", "--multirun", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [status(run)["status"] for run in run_folders(tmp_path)] == ["done", "done"]
