"""What a training says while it goes on: one line that stays, on a terminal; lines now and then, in a file."""

import io
import re

import pytest
from rich.console import Console

from flowdiff.training.callbacks import progress

VALUES = "loss 1.588  bits_per_dim 2.026"


def frames(width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a terminal of so many columns is given in 40 steps of a run of 1,000, line by line."""
    clock, written = iter(range(10**6)), io.StringIO()
    monkeypatch.setattr(progress.Progress, "_console", Console(file=written, force_terminal=True, width=width))
    monkeypatch.setattr("flowdiff.progress.time.monotonic", lambda: float(next(clock)))
    steps = progress.Steps("step", 1000, False, 0.0, 10.0, done=300, stdout=True)
    for _ in range(40):
        steps.advance(1, lambda: VALUES)
        steps._bar.refresh()
    assert steps.has_bar
    steps.__exit__(None, None, None)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.getvalue())
    return [line for line in re.split(r"[\r\n]+", shown) if line.strip()]


@pytest.mark.parametrize("width", [60, 80, 140])
def test_one_line_on_a_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = frames(width, monkeypatch)
    assert max(map(len, lines)) <= width
    assert re.search(r"━━.* 340/1000 \d+(/s| steps/s) \d:\d\d:\d\d " + VALUES, lines[-1]), lines[-1]
    assert all("/1000" in line for line in lines), "no frame takes a second line"


def test_lines_in_a_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    monkeypatch.setattr("flowdiff.progress.time.monotonic", lambda: now[0])
    steps = progress.Steps("step", 100, False, 0.0, 10.0, done=0, stdout=True)
    for _ in range(100):
        now[0] += 0.25
        steps.advance(1, lambda: VALUES)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"step 1/100  {VALUES}  4.0 steps/s  25 s left" and len(lines) == 3
