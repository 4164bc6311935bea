"""A sweep whose files come from anyone: the report reads little of each, says what it doesn't read, has no markup."""

import csv
import json
import os
import resource
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from flowdiff.commands.collect import main
from flowdiff.errors import JOINERS
from flowdiff.files import Unreadable
from flowdiff.reports import figures
from flowdiff.runs.job_folders import collect, read_job
from flowdiff.runs.run_files import MOST_JSON, find_picture, read_json

PNG = b"\x89PNG\r\n\x1a\n"
EVIL = '<script>alert(1)</script>|\n\x1b[31m[x](javascript:alert(1))![y](http://example.org/z.png)`"\u202e'
WORDS = [f"activation={EVIL}", "=lr=1", "seed=0"]


class Elements(HTMLParser):
    """The elements of a page, and all that could lead out of it."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "action", "data", "style")]


def job(root: Path, name: str, status: Any = None, metrics: Any = None) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    for file, content in (("status.json", status), ("metrics.json", metrics)):
        if content is not None:
            (folder / file).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def good(number: int, **more: Any) -> dict[str, Any]:
    return {"status": "done", "overrides": [f"activation={number}", *WORDS[1:]], "seconds": 1.0} | more


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    root = tmp_path / "sweep"
    number = {"value": 1.0, "n": 3}
    names = {EVIL: number, "=1+1": number, "$\\frac$": number, "bits_per_dim": number, "": number}
    job(root, "0", good(0), names)
    job(root, "1\n<b>|`x`", good(1) | {"overrides": WORDS, "error": f"={EVIL}", "status": EVIL}, names)
    job(root, "2", good(2), "[" * 200_000)
    job(root, "3", "{" * 5000 + '"a":', {"fd": {"value": "=1", "n": EVIL}, "fid": [1], "kid": number})
    job(root, "4", good(4), '{"a": {"value": NaN}, "b": {"value": 1e999}, "c": {"value": ' + "9" * 4000 + "}}")
    job(root, "5", good(5, overrides={"a": 1}, seconds=1e400, pid=2**80, host=os.uname().nodename), {"a": number})
    job(
        root, "6", good(6, overrides=[None, ["x"], {"y": 1}, "a=" + "(" * 3000, "b=${c}", 7], status=["x"], seconds="x")
    )
    job(
        root,
        "7",
        good(7, status="running", started="9999-12-31T23:59:59", pid=-1),
        {f"m{i}": number for i in range(5000)},
    )
    folder = job(root, "8", good(8))
    with (folder / "metrics.json").open("wb") as file:
        file.truncate(10**9)
    folder = job(root, "9", good(9))
    os.mkfifo(folder / "metrics.json")
    (folder / "samples.png").symlink_to("/dev/zero")
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "metrics.json").write_text(json.dumps({"stolen": number}))
    (secret / "samples.png").write_bytes(PNG + b"stolen")
    folder = job(root, "10", good(10))
    for name in ("metrics.json", "samples.png"):
        (folder / name).symlink_to(secret / name)
    folder = job(root, "11", good(11), {"bits_per_dim": number})
    (folder / "samples.png").write_bytes(b"<svg onload='alert(1)'/>")
    (folder / "csv").mkdir()
    (folder / "csv" / "metrics.csv").write_text('step,val/loss\n1,"\n\0' + "a" * 200_000)
    folder = root / "12" / ".hydra"
    folder.mkdir(parents=True)
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x]", *(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))]
    (folder / "overrides.yaml").write_text("\n".join(lines))
    folder = root / "13" / ".hydra"
    folder.mkdir(parents=True)
    (folder / "overrides.yaml").write_text("- !!python/object/apply:os.system ['touch stolen']\n- seed=1\n")
    return root


@pytest.mark.slow
def test_a_report_of_hostile_files(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    words = [str(sweep), "--samples", "0", "--metrics", "bits,kid,a"]
    assert main(words) == 0
    assert main([str(sweep), "--samples", "0"]) == 0
    assert time.monotonic() - start < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000, "kB"
    out, err = capsys.readouterr()
    assert not [c for c in (out + err).replace("\n", "") if not c.isprintable() and c not in JOINERS]
    assert "no samples of" in out and "samples.png: no PNG, not shown" in out

    page = Elements()
    text = (sweep / "report" / "index.html").read_text()
    page.feed(text)
    known = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "table", "tr", "th", "td", "b"}
    assert page.tags <= known | {"figure", "img", "figcaption"}
    assert all(source.startswith("data:image/png;base64,iVBORw0KGgo") for source in page.sources)
    summary = (sweep / "report" / "summary.md").read_text()
    assert "<" not in summary and "](http" not in summary and "](javascript" not in summary
    tables = [line for line in summary.split("## Jobs")[1].splitlines() if line.startswith("|")]
    assert len(tables) == 2 + 14, "a line for each job"
    assert "stolen" not in summary + text
    for reason in ("nested too deeply, not read", "1,000,000,000 bytes, more than", "no regular file", "a link out of"):
        assert reason in summary, reason
    with (sweep / "report" / "results.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert len(rows) == 14 and not [c for c in (*header, *sum(rows, [])) if c[:1] in ("=", "+", "@", "\t", "\r")]
    assert len(header) < 400 and not Path("stolen").exists()


def test_what_is_read_of_each(sweep: Path) -> None:
    jobs = {job.folder.name: job for job in collect(sweep)}
    assert jobs["4"].metrics == {"a": None, "b": None, "c": None} and jobs["3"].metrics == {"kid": 1.0}
    assert jobs["5"].words == [] and jobs["5"].seconds is None and jobs["7"].status == "running"
    assert len(jobs["7"].metrics) == 300 and jobs["12"].words == [] and jobs["13"].words == []
    assert all(isinstance(word, str) for job in jobs.values() for word in job.words)
    assert all("\n" not in job.error and len(job.error) < 2500 for job in jobs.values())


def test_files_of_a_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "sub").mkdir(parents=True)
    (run / "a.json").write_text("[1]")
    (run / "inside.json").symlink_to("a.json")
    (run / "loop.json").symlink_to("loop.json")
    (tmp_path / "a.json").write_text("[2]")
    assert read_json(run, "a.json") == read_json(run, "inside.json") == [1]
    assert read_json(run, "gone.json") is None and read_json(run, "loop.json") is None
    for name, target in (
        ("out.json", tmp_path / "a.json"),
        ("up.json", Path("../a.json")),
        ("device.json", "/dev/zero"),
    ):
        (run / name).symlink_to(target)
        with pytest.raises(Unreadable, match=f"{name}: a link out of the run folder"):
            read_json(run, name)
    (run / "large.json").write_bytes(b" " * (MOST_JSON + 1))
    for name, reason in (("large.json", "more than"), ("sub", "no regular file")):
        with pytest.raises(Unreadable, match=reason):
            read_json(run, name)
    (run / "x.png").write_bytes(PNG)
    assert find_picture(run, "x.png") == (run / "x.png").resolve() and find_picture(run, "y.png") is None
    linked = tmp_path / "linked"
    linked.symlink_to(run)
    assert read_json(linked, "a.json") == [1], "the folder itself may be reached by a link"
    (run / "status.json").write_text(json.dumps({"status": "done", "overrides": ["seed=1"]}))
    assert read_job(linked).status == "done"


def test_any_number_of_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[object] = []
    monkeypatch.setattr(figures, "plot_against", lambda *words: drawn.append(words))
    for number in (0, 1):
        words = [f"key{i}={number}" for i in range(1000)]
        job(tmp_path, str(number), {"status": "done", "overrides": words}, {"fd": {"value": number, "n": 1}})
    start = time.monotonic()
    assert main([str(tmp_path), "--samples", "0"]) == 0
    text = (tmp_path / "report" / "summary.md").read_text()
    assert "Of 300 swept keys the first 8 have sections of their own." in text and len(drawn) == 8 + 2 * 28
    assert time.monotonic() - start < 30
