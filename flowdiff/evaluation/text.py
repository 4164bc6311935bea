"""Text from files and names, made fit for where it goes: HTML, Markdown, a cell of CSV, a label of a figure.

What a run folder holds may come from anyone. A page obeys tags, Markdown links and images, a spreadsheet cells that
begin with `=`: none of them survives here.
"""

import html
import re

from flowdiff.errors import one_line

FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")


def to_html(text: object) -> str:
    """As the content of an element or of an attribute in quotes."""
    return html.escape(one_line(text), quote=True)


def to_html_block(text: str) -> str:
    """As the content of a <pre>: its lines and their indentation stay."""
    lines = text.expandtabs().splitlines()
    return "\n".join(" " * (len(line) - len(line.lstrip(" "))) + to_html(line) for line in lines)


def to_markdown(text: object) -> str:
    """As text within a line or a cell of a table: no tag, link, image, code, emphasis, column."""
    found = re.sub(r"[\\`*~$|]", r"\\\g<0>", one_line(text))
    found = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", found)  # within a word an underscore stands for itself
    found = found.replace("](", "]\\(").replace("][", "]\\[").replace("://", "\\://")
    return found.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def to_cell(text: object) -> str:
    """As a cell of CSV that no spreadsheet takes for a formula; numbers stay what they are."""
    line = one_line(text)
    return f"'{line}" if line.startswith(FORMULA) and not is_number(line) else line


def to_label(text: object) -> str:
    """As a label of matplotlib's, which reads what is between two $ as mathematics."""
    return one_line(text, 60).replace("$", r"\$")


def is_number(word: str) -> bool:
    """Whether it is one, as a spreadsheet reads it."""
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", word.strip()) is not None
