"""What the tour prints and draws: runs the code of docs/tour.ipynb, and stores it there and in docs/tour.zh.ipynb.

python -m docs.tour

The English notebook's code is the source of both; the Chinese one has the same cells with other text.
"""

import base64
import contextlib
import io
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ENGLISH, CHINESE = (Path(__file__).with_name(name) for name in ("tour.ipynb", "tour.zh.ipynb"))
DPI = 80  # of the pictures, so that a notebook stays below 400 KB
Cell = dict[str, Any]


def code_cells(notebook: dict[str, Any]) -> list[Cell]:
    """Of a notebook, in their order."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def read(path: Path) -> dict[str, Any]:
    """A notebook as it is stored."""
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, notebook: dict[str, Any]) -> None:
    """As Jupyter stores it."""
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def execute(cells: list[Cell]) -> Iterator[list[dict[str, Any]]]:
    """Run code cells in one namespace, in the folder that this process is in.

    Returns:
        The outputs of each: what it printed, then each figure that it drew.
    """
    import matplotlib

    matplotlib.use("Agg")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells, 1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("".join(cell["source"]), f"<code cell {number}>", "exec"), namespace)
        text = [{"name": "stdout", "output_type": "stream", "text": lines_of(printed.getvalue())}]
        yield [*(text if printed.getvalue() else []), *(_picture(png) for png in _figures())]


def lines_of(text: str) -> list[str]:
    """A text as a notebook stores it."""
    return text.splitlines(keepends=True)


def _figures() -> Iterator[bytes]:
    """The figures that are open, as PNG; they are closed."""
    from matplotlib import pyplot as plt

    for number in plt.get_fignums():
        png = io.BytesIO()
        plt.figure(number).savefig(png, format="png", dpi=DPI, metadata={"Software": None})
        yield png.getvalue()
    plt.close("all")


def _picture(png: bytes) -> dict[str, Any]:
    data = {"image/png": base64.b64encode(png).decode() + "\n", "text/plain": ["<Figure>"]}
    return {"data": data, "metadata": {}, "output_type": "display_data"}


def main() -> None:
    """Run the code, and write both notebooks."""
    english, chinese = read(ENGLISH), read(CHINESE)
    cells, home = code_cells(english), Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        outputs = list(execute(cells))
        os.chdir(home)
    for notebook, path in ((english, ENGLISH), (chinese, CHINESE)):
        for number, (cell, own, found) in enumerate(zip(code_cells(notebook), cells, outputs, strict=True), 1):
            cell |= {"execution_count": number, "outputs": found, "source": own["source"]}
        write(path, notebook)


if __name__ == "__main__":
    main()
