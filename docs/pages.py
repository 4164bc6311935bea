"""MkDocs' hook: the studies' pages in experiments/ and the notebooks in docs/ are pages of the site, whose links are
right there and on GitHub.

Pages link to each other and to the source as files of the repository. On the site a link to a page or a picture leads
there, a link to source is its text, and a link to nothing is a warning, with which a strict build fails.
"""

import base64
import json
import logging
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
FURTHER = ("README.zh.md", "CHANGELOG.md", "CONTRIBUTING.md")
SHOWN = {".md", ".png", ".csv"}
LINK = re.compile(r"(?P<text>!?\[[^\]]*\])\((?P<path>[^)#\s:]+)(?P<anchor>#[^)\s]*)?\)")
log = logging.getLogger("mkdocs.hooks.pages")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The site's files: those of docs/, a page for each notebook, and what is shown of the repository beside it."""
    studies = [file for file in sorted(ROOT.glob("experiments/**/*")) if file.suffix in SHOWN]
    for file in [*studies, *(ROOT / name for name in FURTHER if (ROOT / name).is_file())]:
        place = file.relative_to(ROOT).as_posix()
        files.append(File(place, str(ROOT), config.site_dir, config.use_directory_urls))
    for notebook in sorted(ROOT.glob("docs/*.ipynb")):
        for name, content in _pages_of(notebook):
            files.append(File.generated(config, name, content=content))
    return files


def _pages_of(notebook: Path) -> Iterator[tuple[str, str | bytes]]:
    """A notebook as Markdown, and the pictures in it: file names and contents."""
    parts, pictures = [], 0
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(f"```python\n{source}\n```" if cell["cell_type"] == "code" else source)
        for output in cell.get("outputs", []):
            if "text" in output:
                parts.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
            else:
                pictures += 1
                picture = f"{notebook.stem}-{pictures}.png"
                yield picture, base64.b64decode(output["data"]["image/png"])
                parts.append(f"![what the code draws]({picture})")
    yield f"{notebook.stem}.md", "\n\n".join(parts)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A page whose links between files of the repository are links between files of the site."""
    file = page.file.abs_src_path  # None: of a notebook
    source = Path(file).relative_to(ROOT).as_posix() if file else f"docs/{page.file.src_uri}"

    def follow(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link["path"]))
        place = "index.md" if target == "README.md" else re.sub(r"\.ipynb$", ".md", target.removeprefix("docs/"))
        if files.get_file_from_path(place) is not None:
            relative = posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or ".")
            return f"{link['text']}({relative}{link['anchor'] or ''})"
        if not (ROOT / target).exists():
            log.warning("%s links to %s, which is not there", source, link["path"])
        return link["text"].strip("![]")

    return LINK.sub(follow, markdown)
