"""What comes from files, on its way to a terminal, a page, Markdown, a spreadsheet."""

import csv
import io
import random
import re
from html.parser import HTMLParser

import pytest

from flowdiff.errors import JOINERS, ConfigError, FlowdiffError, one_line, spell
from flowdiff.evaluation import tables, text
from flowdiff.evaluation.tables import Bold

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "[a](javascript:alert(1))",
    "![a](http://example.org/x.png)",
    "[a][b]",
    "a | b",
    "a\nb\r\nc\u2028d\x85e",
    "`code` *bold* _slant_ ~gone~ $x$",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07rest",
    "\x1b]8;;http://example.org\x1b\\link\x1b]8;;\x1b\\",
    "\x9b2Jcleared",
    "\x1bP1$r\x1b\\q",
    "a\x00\x07\x08\x7fb",
    "\u202eright to left\u2066",
    "[/] [red]x[/red] [link=file:///etc]y[/link]",
    "\udcff",
    "=1+1",
    "+1+1",
    "-1+1",
    "@SUM(A1)",
    "\t=1+1",
    "\r=1+1",
    " =1+1",
    "＝1+1",
    "&lt;b&gt; &#x3c;",
    "a\\",
    "**",
    "$\\frac$",
)


UNSEEN = "\u061c\u200b\u200d\u200e\u2028\u202e\u2066\ufeff"


def anything(n: int = 2000) -> list[str]:
    """The words above, and words of pieces of them and of any characters."""
    draw = random.Random(0)
    letters = [*map(chr, range(0x100)), *"=+-@<>[](){}|`*_~$\\\"'&;:/\n\t", *UNSEEN, "\ud800", "字"]

    def piece() -> str:
        if draw.random() < 0.4:
            word = draw.choice(HOSTILE)
            start = draw.randrange(len(word))
            return word[start : start + draw.randrange(1, 9)]
        return draw.choice(letters)

    return [*HOSTILE, *("".join(piece() for _ in range(draw.randrange(9))) for _ in range(n))]


ANYTHING = anything()


def controls(line: str) -> list[str]:
    return [c for c in line if not c.isprintable() and c not in JOINERS]


def test_one_line_holds_nothing_that_a_terminal_obeys() -> None:
    for word in ANYTHING:
        line = one_line(word)
        assert not controls(line) and len(line) <= len(word) and line.encode() is not None
        assert one_line(line) == line
        assert not controls(one_line(word, 20)) and len(one_line(word, 20)) == min(len(line), 20)
        assert spell(word) == (line or "''")
        for error in (FlowdiffError(word), ConfigError("a.b", word, "must be c")):
            assert not controls(str(error))


def test_sequences_go_with_all_that_is_theirs() -> None:
    assert one_line("a\x1b[31mred\x1b[0m b\x1b]0;title\x07 c\n\td") == "ared b c d"
    assert one_line("数字 é ½ “x” 👩‍🔬") == "数字 é ½ “x” 👩‍🔬", "letters stay"


class Elements(HTMLParser):
    """What a page would show: its elements, attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_shows_the_text_and_nothing_else() -> None:
    for word in ANYTHING:
        page = Elements()
        page.feed(f'<p title="{text.to_html(word)}">{text.to_html(word)}</p>')
        page.close()
        assert page.tags == ["p"] and page.attributes == [("title", one_line(word))]
        assert page.text == one_line(word)
        table = Elements()
        table.feed(tables.to_html([word], [[word, Bold("x")]]))
        assert set(table.tags) == {"table", "tr", "th", "td", "b"} and not table.attributes


def test_markdown_has_no_link_tag_or_column_of_the_text() -> None:
    for word in ANYTHING:
        line = text.to_markdown(word)
        assert "\n" not in line and "<" not in line and "](" not in line and "][" not in line
        bare = re.sub(r"\\[\\`*~$|_(\[:]", "", line)
        assert not set("`*~$|") & set(bare) and "://" not in bare
        header, rule, row = tables.to_markdown([word, "b"], [[word, Bold(word)]]).splitlines()
        assert rule == "| --- | --- |"
        assert all(len(re.findall(r"(?<!\\)(?:\\\\)*\|", cells)) == 3 for cells in (header, row))


def test_no_cell_is_a_formula() -> None:
    for number, word in enumerate(ANYTHING):
        check_cells(word, (number - 99) / 7)


def check_cells(word: str, number: float) -> None:
    written = tables.to_csv([word], [[word, number, str(number), None, 3]])
    header, row = csv.reader(io.StringIO(written))
    for cell in (*header, row[0]):
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")) or text.is_number(cell)
        assert not controls(cell)
    assert float(row[1]) == number and row[2] == str(number) and row[3:] == ["", "3"]


def test_numbers_stay_numbers_and_formulas_do_not() -> None:
    assert [text.to_cell(word) for word in ("-1", "+2.5e-3", "-.5", "1e-3")] == ["-1", "+2.5e-3", "-.5", "1e-3"]
    assert [text.to_cell(word) for word in ("-1+1", "-inf", "=A1", "-")] == ["'-1+1", "'-inf", "'=A1", "'-"]


@pytest.mark.parametrize("word", HOSTILE)
def test_on_the_terminal(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    tables.show([word, "b"], [[word, "2"]], title=word, right=("b",))
    out = capsys.readouterr().out
    assert not controls(out.replace("\n", ""))
    assert one_line(word).split(" ")[0] in out, "what looks like rich's markup is shown as it is"


def test_bold_cells_are_those_that_are_meant() -> None:
    assert tables.to_markdown(["a"], [[Bold("1")], ["**1**"], [Bold("")]]).splitlines()[2:] == [
        "| **1** |",
        r"| \*\*1\*\* |",
        "|  |",
    ]
    assert "<td><b>1</b></td>" in tables.to_html(["a"], [[Bold("1")]])
    assert "<td>**1**</td>" in tables.to_html(["a"], [["**1**"]])
