"""--help, --cfg and tab completion."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig

from flowdiff.model import vocabulary
from flowdiff.model.vocabulary import config_dir
from tests.helpers.command_lines import Run, environment


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


@pytest.mark.slow
def test_tab_completion_in_a_shell(tmp_path: Path) -> None:

    if shutil.which("bash") is None:
        pytest.skip("no bash")
    line = "python -m flowdiff.train flow.n"
    script = f"""
    python() {{ {sys.executable} "$@"; }}
    eval "$(python -m flowdiff.train -sc install=bash)"
    COMP_LINE="{line}" COMP_POINT={len(line)} COMP_CWORD=3
    flowdiff_completion
    echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], env=environment(), cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "flow.n_flows=", done.stderr


def test_the_configuration_is_found_by_its_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert (config_dir() / "config.yaml").is_file()
    assert os.path.isabs(config_dir())
    package = tmp_path / "site-packages" / "flowdiff"
    (package / "conf").mkdir(parents=True)
    (package / "conf" / "config.yaml").touch()
    monkeypatch.setattr(vocabulary, "__file__", str(package / "model" / "vocabulary.py"))
    assert config_dir() == package / "conf"


def test_the_package_lists_its_commands() -> None:
    """`python -m flowdiff` names each file beside it that starts a command."""
    done = subprocess.run([sys.executable, "-m", "flowdiff"], capture_output=True, text=True, env=environment())
    package = Path(vocabulary.__file__).parent.parent
    starts = {file.stem for file in package.glob("*.py") if "import main" in file.read_text()}
    assert len(starts) == 7
    assert starts == {line.split("python -m flowdiff.")[1].split()[0] for line in done.stdout.splitlines()[:-1]}
