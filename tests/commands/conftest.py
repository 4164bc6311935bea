"""The command lines in the tests' own process."""

import importlib
import sys
from pathlib import Path

import pytest

from tests.helpers.command_lines import Run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """`run("train", "lr=1")` is `python -m flowdiff.train lr=1` in `tmp_path`: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")

    def command(name: str, *words: str) -> tuple[int, str, str]:
        main = importlib.import_module(f"flowdiff.commands.{name}").main
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capfd.readouterr()
        return int(left.value.code or 0), out, err

    return command
