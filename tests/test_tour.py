"""The tour runs in less than a minute, what it says is so, and both languages show the same."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from docs import tour
from tests.helpers.command_lines import environment

BOTH = (tour.ENGLISH, tour.CHINESE)
#: Prints the outputs of the tour's cells, whose asserts are its promises, and the CPU seconds.
RUN = """
import json, time
from docs import tour
outputs = list(tour.execute(tour.code_cells(tour.read(tour.ENGLISH))))
print(json.dumps([outputs, time.process_time()]))
"""


def words_and_pictures(outputs: list[dict[str, Any]]) -> tuple[set[str], int]:
    """What outputs have in common on all machines: their words but for units of time, and the number of figures."""
    text = " ".join(line for output in outputs for line in output.get("text", []))
    return set(re.findall(r"[^\W\d_]{4,}", text)), sum("data" in output for output in outputs)


@pytest.mark.slow
def test_the_tour_runs(tmp_path: Path) -> None:
    """In a folder of its own; what is stored is what its code prints and draws."""
    done = subprocess.run(
        [sys.executable, "-c", RUN], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    outputs, seconds = json.loads(done.stdout.splitlines()[-1])
    stored = [cell["outputs"] for cell in tour.code_cells(tour.read(tour.ENGLISH))]
    assert list(map(words_and_pictures, outputs)) == list(map(words_and_pictures, stored)), "python -m docs.tour"
    assert sum(map(len, outputs)) >= 14
    assert seconds < 60
    assert not list(tmp_path.iterdir())


def test_both_languages_show_the_same() -> None:
    """The same code with the same outputs; between them texts with the same headings and formulas."""
    english, chinese = map(tour.read, BOTH)
    assert tour.code_cells(english) == tour.code_cells(chinese), "python -m docs.tour"
    for ours, theirs in zip(english["cells"], chinese["cells"], strict=True):
        assert ours["cell_type"] == theirs["cell_type"]
        if ours["cell_type"] == "markdown":
            one, other = "".join(ours["source"]), "".join(theirs["source"])
            assert re.findall(r"^#+ \d*", one, re.M) == re.findall(r"^#+ \d*", other, re.M)
            assert one.count("```") == other.count("```")
            assert re.search(r"[\u4e00-\u9fff]", other)


@pytest.mark.parametrize("path", BOTH, ids=lambda path: path.name)
def test_a_notebook_is_small_and_whole(path: Path) -> None:
    notebook = tour.read(path)
    assert len(path.read_bytes()) <= 400 * 1024
    cells = tour.code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    texts = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    assert [int(n) for n in re.findall(r"^## (\d)", "\n".join(texts), re.M)] == list(range(1, 8))
    links = re.findall(r"\]\(([^)#\s]+)\)", "\n".join(texts))
    assert links and all((path.parent / link).exists() for link in links)
