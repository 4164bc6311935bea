"""The pages that people read: README in two languages and docs/, their blocks of code and their command lines.

A line before a block says what it needs that the tests lack: `<!-- needs: gpu -->`, likewise cluster, network, data.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
READMES = (ROOT / "README.md", ROOT / "README.zh.md")
PAGES = (*READMES, *sorted(ROOT.glob("docs/**/*.md")))
BLOCK = re.compile(r"(?:^<!-- needs: (?P<needs>[^\n]*) -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.M | re.S)
IN_TEXT = re.compile(r"`((?:python -m (?:flowdiff|experiments|docs)[.\w]*|flowdiff [a-z]+|make)(?: [^`]*)?)`")


class Block(NamedTuple):
    """A fenced block of code of a page."""

    page: str
    language: str
    code: str
    needs: str


class Command(NamedTuple):
    """A command line of a page; `program` is `make`, `pip`, … or the module that `python -m` runs."""

    page: str
    line: str
    program: str
    words: tuple[str, ...]
    needs: str


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(language: str, *pages: Path) -> Iterator[Block]:
    """The blocks of code in a language, of these pages or of all."""
    for page in pages or PAGES:
        for found in BLOCK.finditer(text_of(page)):
            if found["language"] == language:
                yield Block(page.relative_to(ROOT).as_posix(), language, found["code"], found["needs"] or "")


def block(language: str, containing: str, *pages: Path) -> str:
    """The one block of code in a language that holds these words."""
    (found,) = [each.code for each in blocks(language, *pages) if containing in each.code]
    return found


def commands() -> Iterator[Command]:
    """The command lines of all pages: each line of a block in bash, and those in the text that leave nothing out."""
    for each in blocks("bash"):
        for line in each.code.replace("\\\n", " ").splitlines():
            if line.strip() and not line.lstrip().startswith("#"):
                yield _command(each.page, line, each.needs)
    for page in PAGES:
        for line in IN_TEXT.findall(BLOCK.sub("", text_of(page))):
            if "…" not in line:
                yield _command(page.relative_to(ROOT).as_posix(), line, "")


def _command(page: str, line: str, needs: str) -> Command:
    words = shlex.split(line, comments=True)
    program = words.pop(0)
    if program.endswith("python") and words[:1] == ["-m"]:
        program, words = words[1], words[2:]
    if program == "flowdiff" and words:
        program, words = f"flowdiff.{words[0]}", words[1:]
    return Command(page, line, program, tuple(words), needs)
