"""The recorded tables are what the code makes of the recorded measurements."""

import csv
import json
from pathlib import Path

import pytest

import experiments
from experiments.benchmarks import contenders, flows
from experiments.common import columns
from experiments.common.results import Result, Results
from experiments.compile import __main__ as compilation
from experiments.denoising_gap import __main__ as denoising_gap
from experiments.flow_table import __main__ as flow_table
from experiments.main_job import table
from experiments.scale import __main__ as scale
from experiments.scale import processes
from experiments.sdxl_latent import __main__ as sdxl_latent
from experiments.speed import __main__ as speed

FOLDER = Path(experiments.__file__).parent


def rows(folder: Path) -> list[Result]:
    """Every JSON file of a folder, by name."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]


@pytest.mark.parametrize("dataset", contenders.DATASETS)
def test_the_benchmark(dataset: str, tmp_path: Path) -> None:
    folder = FOLDER / "benchmarks" / "results"
    recorded = rows(folder / dataset)
    request = recorded[0]["request"]
    everyone = contenders.contenders(dataset, request["seconds"], request["seed"])
    results = Results(folder / dataset, tmp_path)
    found = [result for contender in everyone if (result := results.read(contender)) is not None]
    assert len(found) == len(recorded), "each answers a contender's request"
    flows.report(found, tmp_path, dataset)
    for name in (f"{dataset}.csv", f"{dataset}.md"):
        assert (tmp_path / name).read_text() == (folder / name).read_text()


def test_the_found_tableof_flows(tmp_path: Path) -> None:
    folder = FOLDER / "flow_table" / "results"
    flow_table.report(rows(folder / "flows"), tmp_path)
    for name in ("flows.csv", "flows.md"):
        assert (tmp_path / name).read_text() == (folder / name).read_text()


def test_compiled_steps() -> None:
    folder = FOLDER / "compile" / "results" / "cpu"
    found = columns.to_markdown(compilation.COLUMNS, rows(folder))
    assert found == (folder / "compile.md").read_text() and found in (FOLDER / "compile" / "README.md").read_text()


SPEED = FOLDER / "speed" / "results"


@pytest.mark.parametrize("file", sorted(SPEED.glob("*/*.json")), ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_what_speed_is_made_of(file: Path, tmp_path: Path) -> None:
    speed.report(file.stem.split("-")[0], json.loads(file.read_text()), tmp_path / "table.md")
    assert (tmp_path / "table.md").read_text() == file.with_suffix(".md").read_text()


@pytest.mark.parametrize("part", denoising_gap.REPORTS)
def test_where_the_denoising_gap_is(part: str, tmp_path: Path) -> None:
    folder = FOLDER / "denoising_gap"
    results = Results(folder / "results" / part, tmp_path)
    everyone = denoising_gap.contenders(part, denoising_gap.SECONDS, 0)
    found = [result for contender in everyone if (result := results.read(contender)) is not None]
    assert len(found) == len(everyone) == len(rows(folder / "results" / part)), "each answers a contender's request"
    denoising_gap.REPORTS[part](found, tmp_path)
    found_table = (tmp_path / f"{part}.md").read_text()
    assert (
        found_table == (folder / "results" / f"{part}.md").read_text()
        and found_table in (folder / "README.md").read_text()
    )


def test_cost_against_size(tmp_path: Path) -> None:
    scale.report(tmp_path)
    folder = FOLDER / "scale"
    for name in ("growth.md", "processes.md"):
        assert (tmp_path / name).read_text() == (folder / "results" / name).read_text()
    assert (tmp_path / "growth.png").is_file()
    assert (tmp_path / "processes.md").read_text() in (folder / "README.md").read_text()


def test_what_is_sent_is_four_bytes_a_parameter() -> None:
    rows_of = scale.read("processes")
    assert len(rows_of) == len(processes.TRAININGS)
    assert all(row["bytes"] == 4 * row["parameters"] for row in rows_of)


def test_steps_on_latents(tmp_path: Path) -> None:
    file = FOLDER / "sdxl_latent" / "steps.csv"
    sdxl_latent.write(tmp_path, list(csv.DictReader(file.open(newline=""))))
    assert (tmp_path / "steps.csv").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("name", table.PAGES)
def test_the_main_jobs_numbers_stand_in_the_pages(name: str) -> None:
    """As `python -m experiments.main_job.table --write` puts them there."""
    page = (FOLDER.parent / name).read_text(encoding="utf-8")
    shown = [column for column in table.PAGES[name] if any(column.value(row) is not None for row in table.rows())]
    heading, _, *lines = page.split("<!-- main job -->\n")[1].split("<!-- /main job -->")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (heading, *lines)]
    assert cells[0] == [column.heading for column in shown]
    assert cells[1:] == [[column.text(row) for column in shown] for row in table.rows()]
    assert page == table.fill(page, table.PAGES[name])


def test_the_index_has_every_experiment() -> None:
    index = (FOLDER / "README.md").read_text()
    folders = {file.parent.name for file in FOLDER.glob("*/README.md")}
    assert folders and {name for name in folders if f"]({name}/README.md)" not in index} == set()
    assert {folder.parent.name for folder in FOLDER.glob("*/results")} <= folders
