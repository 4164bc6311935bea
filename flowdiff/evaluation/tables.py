"""Tables: on the terminal, as CSV, Markdown and HTML. What is in their cells may come from anyone (`text`).

Numbers have four digits where people read them and all of them in CSV; None is an empty cell.
"""

import csv
import io
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flowdiff.errors import one_line
from flowdiff.evaluation import text

LONGEST = 300  # characters of a cell that people read


class Bold(str):
    """A cell that is shown bold."""


def short(cell: Any) -> str:
    """A cell as people read it: four digits a number, nothing where there is no value, one line of bounded length."""
    if cell is None:
        return ""
    line = f"{cell:.4g}" if isinstance(cell, float) else one_line(cell, LONGEST)
    return Bold(line) if isinstance(cell, Bold) else line


def to_csv(header: Sequence[Any], table: Iterable[Sequence[Any]]) -> str:
    """With full precision."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    for row in (header, *table):
        writer.writerow(["" if c is None else c if isinstance(c, int | float) else text.to_cell(c) for c in row])
    return written.getvalue()


def to_markdown(header: Sequence[Any], table: Iterable[Sequence[Any]]) -> str:
    """A table of GitHub's Markdown."""

    def shown(cell: Any) -> str:
        line = short(cell)
        return f"**{text.to_markdown(line)}**" if isinstance(line, Bold) and line else text.to_markdown(line)

    lines = [[shown(cell) for cell in header], ["---"] * len(header), *([shown(c) for c in row] for row in table)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def to_html(header: Sequence[Any], table: Iterable[Sequence[Any]]) -> str:
    """An element of a page."""

    def shown(cell: Any) -> str:
        line = short(cell)
        return f"<td><b>{text.to_html(line)}</b></td>" if isinstance(line, Bold) else f"<td>{text.to_html(line)}</td>"

    heads = "".join(f"<th>{text.to_html(short(name))}</th>" for name in header)
    lines = "".join(f"<tr>{''.join(map(shown, row))}</tr>\n" for row in table)
    return f"<table><tr>{heads}</tr>\n{lines}</table>"


def show(
    header: Sequence[Any],
    table: Iterable[Sequence[Any]],
    title: str | None = None,
    right: Collection[str] = (),
    least: int = 130,
) -> None:
    """Print it.

    Args:
        header, table: the cells.
        title: above it.
        right: the columns that are aligned so.
        least: columns of characters where the output isn't a terminal.
    """
    shown = Table(title=None if title is None else Text(one_line(title)), title_justify="left")
    for name in header:
        shown.add_column(Text(short(name)), justify="right" if name in right else "left", overflow="fold")
    for row in table:
        shown.add_row(*(Text(short(cell)) for cell in row))
    console = Console()
    Console(width=console.width if console.is_terminal else max(console.width, least)).print(shown)
