"""MkDocs' hook: the studies' pages in experiments/ are pages of the site, and links are right there and on GitHub.

Pages link to each other and to the source as files of the repository. On the site a link to a page or a picture leads
there, a link to source is its text, and a link to nothing is a warning, with which a strict build fails.
"""

import logging
import posixpath
import re
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
    """The site's files: those of docs/, and what is shown of the repository beside it."""
    studies = [file for file in sorted(ROOT.glob("experiments/**/*")) if file.suffix in SHOWN]
    for file in [*studies, *(ROOT / name for name in FURTHER if (ROOT / name).is_file())]:
        place = file.relative_to(ROOT).as_posix()
        files.append(File(place, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A page whose links between files of the repository are links between files of the site."""
    source = Path(page.file.abs_src_path or "").relative_to(ROOT).as_posix()

    def follow(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link["path"]))
        place = "index.md" if target == "README.md" else target.removeprefix("docs/")
        if files.get_file_from_path(place) is not None:
            relative = posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or ".")
            return f"{link['text']}({relative}{link['anchor'] or ''})"
        if not (ROOT / target).exists():
            log.warning("%s links to %s, which is not there", source, link["path"])
        return link["text"].strip("![]")

    return LINK.sub(follow, markdown)
