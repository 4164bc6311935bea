"""The report as files: summary.md, and index.html, which holds the pictures in itself and can be sent by mail."""

import base64
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from flowdiff.errors import one_line
from flowdiff.evaluation import tables
from flowdiff.evaluation.text import to_html, to_html_block, to_markdown
from flowdiff.files import write_text
from flowdiff.reports import figures, samples, summary
from flowdiff.reports.best import Best
from flowdiff.reports.rows import count_jobs, rows
from flowdiff.reports.summary import Table
from flowdiff.runs.job_folders import Job

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px; display: block; overflow-x: auto }
th, td { border: 1px solid #ccc; padding: 2px 8px; text-align: left; white-space: nowrap }
th { background: #f3f3f3 }
img { max-width: 100% }
figure { display: inline-block; margin: 0 1em 1em 0; max-width: 560px }
pre { font-size: 13px; overflow-x: auto; background: #f7f7f7; padding: 0.5em }
figure.wide { max-width: 100% } figcaption { font-size: 13px; color: #555 } h2 { margin-top: 2em }
"""


#: As many keys, and pairs of them, are studied: what a folder holds may have any number.
KEYS = 8


@dataclass
class Section:
    """A heading, sentences, tables, pictures with their captions, and text as it stands in a file."""

    title: str
    sentences: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[tuple[str, Path]] = field(default_factory=list)
    small: list[tuple[str, Path]] = field(default_factory=list)
    text: str = ""


def sections(
    jobs: Sequence[Job], root: Path, baselines: dict[str, str], winner: Best | None, n_samples: int, folder: Path
) -> list[Section]:
    """What the report says, with the pictures drawn into `folder`."""
    seconds = sum(job.seconds or 0.0 for job in jobs)
    everything = Section("Jobs", [f"{count_jobs(jobs)}; {seconds:,.0f} seconds of jobs in all."])
    header, table = rows(jobs, root)
    everything.tables.append((header, [[tables.short(cell) for cell in row] for row in table]))
    if len(baselines) > KEYS:
        everything.sentences.append(f"Of {len(baselines)} swept keys the first {KEYS} have sections of their own.")
        baselines = dict(itertools.islice(baselines.items(), KEYS))
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
    first = [] if winner is None else [Section("The best job", [winner.sentence], text=winner.command or "")]
    return [*first, *found, everything]


def _pair(jobs: Sequence[Job], key: str, other: str, folder: Path) -> Section:
    """Two keys together: whether what one does depends on the other."""
    section = Section(f"{key} × {other}", [f"A row for each {key}, a column for each {other}: mean ± standard error."])
    section.tables = [summary.cross_table(jobs, key, other, metric) for metric in summary.list_plotted(jobs)]
    _plot(section, jobs, key, other, folder)
    _plot(section, jobs, other, key, folder)
    return section


def _plot(section: Section, jobs: Sequence[Job], key: str, line: str | None, folder: Path) -> None:
    name = samples.file_name("plot", key, *([line] if line else []))
    plot = figures.plot_against(jobs, key, line, folder / f"{name}.png")
    if plot is not None:
        what = "each point a job" + (f", a colour for each {line}" if line else "")
        section.pictures.append((f"Metrics against {key}; {what}.", plot))


def _tables(section: Section, jobs: Sequence[Job], key: str, baseline: str) -> None:
    section.sentences.append(
        "Mean over the jobs with a value, ± standard error over their seeds (none from one seed). The best mean is "
        "bold, of metrics that say which way is better."
    )
    section.tables.append(summary.means_table(jobs, key))
    differences = summary.differences_table(jobs, key, baseline)
    if differences[1]:
        section.sentences.append(
            f"Differences are paired: two jobs that differ in {key} alone, seed and all else equal. Pairs of one seed "
            "are averaged and count as one. An interval that holds 0 shows no difference; of twenty comparisons of "
            "equals one will not hold it. One seed has no interval and gives no verdict."
        )
        section.tables.append(differences)


def markdown(title: str, made: str, found: Sequence[Section]) -> str:
    """summary.md: pictures are linked."""
    parts = [f"# {to_markdown(title)}", to_markdown(made)]
    for section in found:
        parts += [f"## {to_markdown(section.title)}", *map(to_markdown, section.sentences)]
        parts += [tables.to_markdown(*table).rstrip() for table in section.tables]
        parts += ["\n".join(f"    {line}" for line in section.text.splitlines())] if section.text else []
        parts += [f"![{to_markdown(caption)}]({path.name})" for caption, path in [*section.pictures, *section.small]]
    return "\n\n".join(parts) + "\n"


def page(title: str, made: str, found: Sequence[Section]) -> str:
    """index.html: one file with the pictures in it, which fetches and runs nothing."""
    parts = [f"<h1>{to_html(title)}</h1>", f"<p>{to_html(made)}</p>"]
    for section in found:
        parts.append(f"<h2>{to_html(section.title)}</h2>")
        parts += [f"<p>{to_html(sentence)}</p>" for sentence in section.sentences]
        parts += [tables.to_html(*table) for table in section.tables]
        parts += [picture(caption, path, "wide") for caption, path in section.pictures]
        parts += [picture(caption, path, "small") for caption, path in section.small]
        parts += [f"<pre>{to_html_block(section.text)}</pre>"] if section.text else []
    body = "\n".join(parts)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
    head += '<meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{to_html(title)}</title><style>{STYLE}</style>"
    return f"<!doctype html>\n<html><head>{head}</head>\n<body>\n{body}\n</body></html>\n"


def picture(caption: str, path: Path, kind: str) -> str:
    """A PNG as part of the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    shown = to_html(caption)
    image = f'<img alt="{shown}" src="data:image/png;base64,{data}">'
    return f'<figure class="{kind}">{image}<figcaption>{shown}</figcaption></figure>'


def write(
    jobs: Sequence[Job],
    root: Path,
    baselines: dict[str, str],
    winner: Best | None,
    n_samples: int,
    folder: Path,
    command: str,
) -> None:
    """summary.md, index.html and their pictures, into `folder`; `command` is what they are made by."""
    found = sections(jobs, root, baselines, winner, n_samples, folder)
    title = one_line(f"Sweep over {', '.join(baselines)}", 300) if baselines else "One setting"
    now = datetime.now().astimezone().isoformat(" ", "seconds")
    made = f"Made {now} from {one_line(root.resolve())} by: {one_line(command)}"
    write_text(folder / "summary.md", markdown(title, made, found))
    write_text(folder / "index.html", page(title, made, found))
