"""What README and docs/ say works: their commands, their code, their links, what they list."""

import json
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch

from docs import reference
from flowdiff.commands.train import make_train_request
from flowdiff.runs.words import list_swept, read_word
from tests.helpers import forked, pages, trained
from tests.helpers.command_lines import BARE, TINY, environment
from tests.helpers.configs import composed
from tests.helpers.pages import PAGES, READMES, ROOT, Command, block, text_of

GUIDES = ROOT / "docs" / "guides"
COMMANDS = list(dict.fromkeys(pages.commands()))
NEEDS = {"gpu", "cluster", "network", "data"}
#: Command lines by one process, which imports torch once.
IN_TURN = """
import json, runpy, sys
for sys.argv in json.loads(sys.argv[1]):
    try:
        runpy.run_module(sys.argv[0], run_name="__main__")
    except SystemExit as done:
        if done.code:
            raise
"""


@pytest.mark.parametrize("page", READMES, ids=lambda page: page.name)
def test_a_readme_is_short(page: Path) -> None:
    assert len(page.read_bytes()) <= 8192


def test_both_readmes_show_the_same() -> None:
    """The same commands, code, pictures and pages, in the same order."""

    def shown(page: Path) -> list[object]:
        lines = [c._replace(page="", line="") for c in pages.commands() if c.page == page.name]
        code = [re.sub(r" *#.*", "", each.code) for each in pages.blocks("python", page)]
        links = re.findall(r"\]\(([^)]+)\)", text_of(page))
        return [lines, code, [link for link in links if not link.startswith("README")]]

    english, chinese = map(shown, READMES)
    assert english[1:] == chinese[1:]
    assert english[0] == chinese[0]


def test_links_lead_somewhere() -> None:
    """As files of the repository; that they do on the site, with their anchors, is in `make docs`."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)[^)\s]*\)", pages.BLOCK.sub("", text_of(page))):
            assert target.startswith("http") or (page.parent / unquote(target)).exists(), (page, target)


def test_each_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES[len(READMES) :]:
        assert page.relative_to(ROOT / "docs").as_posix() in navigation


def test_each_module_is_in_the_api() -> None:
    """Made anew by `python -m docs.reference`."""
    made = reference.api_pages()
    assert {page.stem for page in made} >= {"flows", "samplers", "commands"}
    assert all(text_of(page) == text for page, text in made.items()), "python -m docs.reference"


def test_the_table_of_groups_is_complete() -> None:
    table = text_of(ROOT / "docs" / "configuration" / "groups.md")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", table, re.M))
    assert set(rows) == set(reference.groups())
    for group in rows:
        choices = {file.stem for file in (ROOT / "conf" / group).glob("*.yaml")}
        named = set(re.findall(r"\w+", re.sub(r"\(.*?\)", "", rows[group])))
        assert named == choices, group


def test_the_reference_is_what_conf_says() -> None:
    """Made anew by `python -m docs.reference`; it has a section for each choice and a line for each key of a file."""
    page = text_of(reference.PAGE)
    assert page == reference.page(), "python -m docs.reference"
    for file in sorted((ROOT / "conf").rglob("*.yaml")):
        group, *choice = file.relative_to(ROOT / "conf").with_suffix("").parts
        if group != "hydra" and choice:
            section = page.split(f"\n### `{group}={'/'.join(choice)}`\n")[1].split("\n## ")[0].split("\n### ")[0]
            for key in re.findall(r"^ *(\w+): (?!\n)", file.read_text(encoding="utf-8"), re.M):
                assert f"{key}`" in section or f"`{key}" in section or key in ("override", "_partial_", "_target_"), key


@pytest.mark.parametrize("line", COMMANDS, ids=lambda c: f"{c.page}: {c.line[:60]}")
def test_the_commands_are_there(line: Command) -> None:
    """The program, the target, the module; of a training the whole configuration, with each value that is swept."""
    needs = {need.strip() for need in line.needs.split(",") if need}
    assert needs <= NEEDS
    if line.program == "make":
        targets = re.findall(r"^(\S+):", (ROOT / "Makefile").read_text(), re.M)
        assert line.words[0] in targets
    elif line.program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        named = re.findall(r"\[([\w,]+)\]", " ".join(line.words))
        assert line.words[0] == "install" and all(set(one.split(",")) <= set(extras) for one in named)
    elif re.match(r"flowdiff|experiments|docs", line.program):
        assert find_spec(line.program)
        if line.program == "flowdiff.train" and "--config-dir" not in line.words:
            check_training(line.words)
    else:
        assert needs, "a program that is not this project's"


def check_training(words: tuple[str, ...]) -> None:
    given = [word for word in words if not word.startswith("-") and word not in ("job", "install=bash")]
    swept = {key: values for key, values in list_swept(given).items() if values}
    searched = [word for word in given if (o := read_word(word).override) and o.is_sweep_override()]
    fixed = [word for word in given if word not in searched]
    first = {key: values[0] for key, values in swept.items()}
    for key, values in swept.items() or [("", [""])]:
        for value in values:
            choice = [f"{k}={v}" for k, v in {**first, **({key: value} if key else {})}.items()]
            make_train_request(composed("config", "run_dir=/run", *fixed, *choice))


def shortened(command: Command) -> list[str]:
    """The words of a command line with a budget of moments."""
    words = [re.sub(r"^(num_steps|num_samples|sampler\.num_steps)=\d+$", r"\1=2", word) for word in command.words]
    words = [re.sub(r"^num_steps=\d+(,\d+)+$", "num_steps=2", word) for word in words]
    if command.program != "flowdiff.train" or {"--help", "--cfg", "-sc"} & set(words):
        return words
    return [*TINY, "metrics=[bits_per_dim]", *words, "trainer.max_steps=4", "trainer.val_check_interval=2"]


@pytest.mark.slow
def test_the_commands_run(tmp_path: Path) -> None:
    """The README's trainings, and what the pages do with what a training leaves, in one folder and with tiny models.

    Other trainings are `test_the_commands_are_there`'s; --config-dir is `test_classes_of_ones_own`'s.
    """
    place = tmp_path / "place"
    place.mkdir()
    unet = trained.checkpoint("unet").parents[1]
    (place / "UNET").symlink_to(unet)
    (place / "FLOW").symlink_to(place / "RUN")
    if not (unet / "checkpoints" / "best.ckpt").exists():
        (unet / "checkpoints" / "best.ckpt").symlink_to(unet / "checkpoints" / "last.ckpt")
    folders = {"--multirun": "hydra.sweep.dir=multirun/digits/DATE/TIME", "": "hydra.run.dir=RUN"}
    mine = [c for c in COMMANDS if c.program.startswith("flowdiff.") and "--config-dir" not in c.words and not c.needs]
    trainings = [c for c in mine if c.program == "flowdiff.train" and c.page == "README.md"]
    others = [c for c in mine if c.program not in ("flowdiff.train", "flowdiff.dashboard") and c.words]
    helps = [c for c in mine if c.program == "flowdiff.train" and {"--help", "--cfg", "-sc"} & set(c.words)]
    lines = [[c.program, *shortened(c), folders["--multirun" * ("--multirun" in c.words)]] for c in trainings]
    lines += [list(line) for line in dict.fromkeys((c.program, *shortened(c)) for c in [*helps, *others])]
    assert {"flowdiff.train", "flowdiff.sample", "flowdiff.evaluate", "flowdiff.export", "flowdiff.collect"} <= {
        module for module, *_ in lines
    }
    for number, (module, *words) in enumerate(lines):
        said = (tmp_path / f"{number}.out", tmp_path / f"{number}.err")
        done = forked.run(module, words, place, environment(), said, 240)
        assert done.returncode == 0, (module, words, done.stderr)


@pytest.mark.slow
def test_classes_of_ones_own(tmp_path: Path) -> None:
    """One class and one YAML file each; the page's own code and commands."""
    page = GUIDES / "own-classes.md"
    code = [each.code for each in pages.blocks("python", page) if "class Mine" not in each.code]
    (tmp_path / "mine.py").write_text("\n\n".join(code))
    for each in pages.blocks("yaml", page):
        file = tmp_path / each.code.splitlines()[0].removeprefix("# ")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(each.code)
    commands = []
    for command in COMMANDS:
        if command.page == "docs/guides/own-classes.md" and "--config-dir" in command.words:
            folder = "RUN" if "activation=arctan" in command.words else f"runs/{len(commands)}"
            sizes = "flow." if "flow=scale" in command.words else "none"  # it has none
            words = [word for word in shortened(command) if not word.startswith(sizes)]
            words += ["callbacks=minimal", f"hydra.run.dir={folder}"] if command.program == "flowdiff.train" else []
            commands.append([command.program, *words])
    assert len(commands) == len(list(pages.blocks("yaml", page)))
    words = ", ".join(json.dumps(word) for word in (*TINY, *BARE, "trainer.max_steps=2"))
    in_python = block("python", "request_of", GUIDES / "python.md").replace('"trainer.max_steps=200"', words)
    (tmp_path / "in_python.py").write_text(f"import mine\n{in_python}")
    result = subprocess.run(
        [sys.executable, "-c", IN_TURN, json.dumps([*commands, ["in_python"]])],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "RUN" / "status.json").read_text())["status"] == "done"
    assert (tmp_path / "runs" / "first" / "checkpoints" / "last.ckpt").is_file()
    assert list(tmp_path.glob("outputs/sample/*/*/grid.png"))


@pytest.mark.parametrize("page", [READMES[0], GUIDES / "python.md"], ids=lambda page: page.name)
def test_a_model_in_python(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With x, sigma and labels that fit."""
    run = trained.checkpoint("digits").parents[1]
    (tmp_path / "RUN" / "checkpoints").mkdir(parents=True)
    (tmp_path / "RUN" / "checkpoints" / "best.ckpt").symlink_to(run / "checkpoints" / "last.ckpt")
    monkeypatch.chdir(tmp_path)
    given = {"x": torch.zeros(2, 1, 8, 8), "sigma": 0.5, "labels": np.array([3, 5])}
    exec(block("python", "flowdiff.load(", page), given)


@pytest.mark.parametrize("each", list(pages.blocks("python")), ids=lambda each: f"{each.page}: {each.code[:30]!r}")
def test_python_can_be_read(each: pages.Block) -> None:
    compile(each.code, each.page, "exec")
