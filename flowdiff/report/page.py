"""The report as files: summary.md, and index.html, which holds the pictures in itself and can be sent by mail."""

import base64
import html
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flowdiff.collect import Job, counted, rows, short, to_markdown
from flowdiff.files import write_text
from flowdiff.report import figures, samples, summary
from flowdiff.report.summary import Table

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px; display: block; overflow-x: auto }
th, td { border: 1px solid #ccc; padding: 2px 8px; text-align: left; white-space: nowrap }
th { background: #f3f3f3 }
img { max-width: 100% }
figure { display: inline-block; margin: 0 1em 1em 0; max-width: 560px }
figure.wide { max-width: 100% } figcaption { font-size: 13px; color: #555 } h2 { margin-top: 2em }
"""


@dataclass
class Section:
    """A heading, sentences, tables and pictures with their captions."""

    title: str
    sentences: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[tuple[str, Path]] = field(default_factory=list)
    small: list[tuple[str, Path]] = field(default_factory=list)


def sections(jobs: Sequence[Job], root: Path, baselines: dict[str, str], n_samples: int, folder: Path) -> list[Section]:
    """What the report says, with the pictures drawn into ``folder``."""
    seconds = sum(job.seconds or 0.0 for job in jobs)
    everything = Section("Jobs", [f"{counted(jobs)}; {seconds:,.0f} seconds of jobs in all."])
    header, table = rows(jobs, root)
    everything.tables.append((header, [[short(cell) for cell in row] for row in table]))
    found = []
    for key, baseline in baselines.items():
        section = Section(key)
        if summary.few(jobs, key):
            _tables(section, jobs, key, baseline)
        _plot(section, jobs, key, None, folder)
        if summary.few(jobs, key):
            curve = figures.curves(jobs, key, folder / f"{samples.file_name('curves', key)}.png")
            if curve is not None:
                section.pictures.append((f"Losses during training, a colour for each {key}.", curve))
            section.small = samples.grids(jobs, key, n_samples, folder)
        found.append(section)
    pairs = itertools.combinations([key for key in baselines if summary.few(jobs, key)], 2)
    found += [_pair(jobs, key, other, folder) for key, other in pairs]
    return [*found, everything]


def _pair(jobs: Sequence[Job], key: str, other: str, folder: Path) -> Section:
    """Two keys together: whether what one does depends on the other."""
    section = Section(f"{key} × {other}", [f"A row for each {key}, a column for each {other}: mean ± standard error."])
    section.tables = [summary.crossed_table(jobs, key, other, metric) for metric in figures.plotted(jobs)]
    _plot(section, jobs, key, other, folder)
    _plot(section, jobs, other, key, folder)
    return section


def _plot(section: Section, jobs: Sequence[Job], key: str, line: str | None, folder: Path) -> None:
    name = samples.file_name("plot", key, *([line] if line else []))
    plot = figures.against(jobs, key, line, folder / f"{name}.png")
    if plot is not None:
        what = "each point a job" + (f", a colour for each {line}" if line else "")
        section.pictures.append((f"Metrics against {key}; {what}.", plot))


def _tables(section: Section, jobs: Sequence[Job], key: str, baseline: str) -> None:
    section.sentences.append("Mean ± standard error over the jobs with a value; the best mean is bold.")
    section.tables.append(summary.means_table(jobs, key))
    differences = summary.differences_table(jobs, key, baseline)
    if differences[1]:
        section.sentences.append(
            f"Differences are paired: two jobs that differ in {key} alone, seed and all else equal. "
            "An interval that holds 0 shows no difference; of twenty comparisons of equals one will not hold it."
        )
        section.tables.append(differences)


def markdown(title: str, found: Sequence[Section]) -> str:
    """summary.md: pictures are linked."""
    parts = [f"# {title}"]
    for section in found:
        parts += [f"## {section.title}", *section.sentences]
        parts += [to_markdown(*table).rstrip() for table in section.tables]
        parts += [f"![{caption}]({path.name})" for caption, path in [*section.pictures, *section.small]]
    return "\n\n".join(parts) + "\n"


def page(title: str, found: Sequence[Section]) -> str:
    """index.html: one file with the pictures in it."""
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for section in found:
        parts.append(f"<h2>{html.escape(section.title)}</h2>")
        parts += [f"<p>{html.escape(sentence)}</p>" for sentence in section.sentences]
        parts += [table_html(*table) for table in section.tables]
        parts += [picture(caption, path, "wide") for caption, path in section.pictures]
        parts += [picture(caption, path, "small") for caption, path in section.small]
    body = "\n".join(parts)
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f"<!doctype html>\n<html><head>{head}</head>\n<body>\n{body}\n</body></html>\n"


def table_html(header: Sequence[str], table: Sequence[Sequence[str]]) -> str:
    """A table, **bold** cells as such."""

    def cell(text: str) -> str:
        bold = text.startswith("**") and text.endswith("**") and len(text) > 4
        return f"<td><b>{html.escape(text[2:-2])}</b></td>" if bold else f"<td>{html.escape(text.strip('*'))}</td>"

    heads = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    lines = "".join(f"<tr>{''.join(cell(text) for text in row)}</tr>\n" for row in table)
    return f"<table><tr>{heads}</tr>\n{lines}</table>"


def picture(caption: str, path: Path, kind: str) -> str:
    """A PNG as part of the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    shown = html.escape(caption)
    image = f'<img alt="{shown}" src="data:image/png;base64,{data}">'
    return f'<figure class="{kind}">{image}<figcaption>{shown}</figcaption></figure>'


def write(jobs: Sequence[Job], root: Path, baselines: dict[str, str], n_samples: int, folder: Path) -> None:
    """summary.md, index.html and their pictures, into ``folder``."""
    found = sections(jobs, root, baselines, n_samples, folder)
    title = f"Sweep over {', '.join(baselines)}" if baselines else "One setting"
    write_text(folder / "summary.md", markdown(title, found))
    write_text(folder / "index.html", page(title, found))
