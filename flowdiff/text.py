r"""Text that comes from files and names, made fit for where it goes: one line, HTML, Markdown, a cell of CSV.

What a run folder holds may come from anyone. A terminal obeys control sequences, a page tags, Markdown links and
images, a spreadsheet cells that begin with `=`: none of them survives here.
"""

import html
import re
import unicodedata

#: CSI, OSC and the like, two-character escapes: what a terminal would obey.
SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b."
)
TURNING = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
LONGEST = 300


def one_line(text: object) -> str:
    """Without control sequences, control characters and marks that turn the direction of writing; white space is
    one blank, what UTF-8 has no bytes for a question mark."""
    kept = (c for c in SEQUENCES.sub("", str(text)) if c.isspace() or not _is_obeyed(c))
    return " ".join("".join(kept).split()).encode(errors="replace").decode()


def _is_obeyed(character: str) -> bool:
    return character in TURNING or unicodedata.category(character) == "Cc"


def cut(text: object, longest: int = LONGEST) -> str:
    """One line of at most so many characters."""
    line = one_line(text)
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def to_html(text: object) -> str:
    """As the content of an element or of an attribute in quotes."""
    return html.escape(one_line(text), quote=True)


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
    return cut(text, 60).replace("$", r"\$")


def is_number(word: str) -> bool:
    """Whether it is one, as a spreadsheet reads it."""
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", word.strip()) is not None


def snake_case(name: str) -> str:
    """`TwoMoons` to `two_moons`, `Dpmpp2mSde` to `dpmpp_2m_sde`."""
    return re.sub(r"(?<=.)([A-Z]|(?<!\d)\d)", r"_\1", name).lower()
