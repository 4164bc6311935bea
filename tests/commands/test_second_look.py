"""What a second pair of eyes found after the first defence stood: each line here was a hole."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import flowdiff
from flowdiff.commands import collect, stored_words
from flowdiff.commands.evaluate import expand, run_of
from flowdiff.errors import FlowdiffError
from flowdiff.model.facts import check_entry
from flowdiff.runs import places
from flowdiff.samplers.batched import default_tile
from flowdiff.training.loggers import MOST, Rows
from tests.helpers.trained import checkpoint, edited


class Reserved:
    """A pickle of a few bytes that asks for gigabytes."""

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return bytearray, (3 * 10**9,)


def test_a_pickle_does_not_choose_how_much_memory_is_taken(tmp_path: Path) -> None:
    path = edited(checkpoint("digits"), tmp_path / "a.ckpt", lambda c: c.update(more=Reserved()))
    with pytest.raises(FlowdiffError, match="Python objects, which are not run"):
        flowdiff.load(path)


def test_a_pickle_is_short_whatever_the_number_of_records(tmp_path: Path) -> None:
    content: dict[str, Any] = {"flowdiff": {}, "x": [f"{i:050d}" for i in range(100_000)]}
    content |= {f"t{i}": torch.zeros(1) for i in range(100)}
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(FlowdiffError, match="list of contents has more than"):
        flowdiff.load(tmp_path / "a.ckpt")


@pytest.mark.parametrize("place", [".lock", "train.log", "config.yaml", "csv/hparams.yaml"])
def test_a_pipe_in_a_run_folder_is_refused_and_not_waited_for(place: str, tmp_path: Path) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / place)
    with pytest.raises(FlowdiffError, match="not a regular file; remove it"):
        places.check_links(tmp_path)


def test_a_run_folder_is_looked_at_whole_or_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "ENTRIES", 10)
    for i in range(11):
        (tmp_path / f"{i}").touch()
    with pytest.raises(FlowdiffError, match="more than 10 files"):
        places.check_links(tmp_path)


def test_a_stored_compile_starts_no_compiler() -> None:
    assert stored_words.is_outside("compile", {"compile": True})


def test_results_follow_no_link_out_of_a_strangers_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for run in (tmp_path / "sweep" / "0", tmp_path / "sweep" / "1"):
        (run / "checkpoints").mkdir(parents=True)
        (run / "checkpoints" / "last.ckpt").touch()
        (run / "status.json").write_text('{"status": "done", "overrides": []}')
    run = tmp_path / "sweep" / "0"
    assert run_of(str(run / "checkpoints" / "last.ckpt")) == str(run)
    (run / "evaluate").mkdir()
    (run / "evaluate" / time.strftime("%Y-%m-%d")).symlink_to(elsewhere)
    assert run_of(str(run / "checkpoints" / "last.ckpt")) == "outputs"
    (tmp_path / "sweep" / "evaluate").symlink_to(elsewhere)
    (word,) = (word for word in expand([f"run={tmp_path}/sweep/*"]) if word.startswith("output_dir="))
    assert word.startswith("output_dir=outputs/evaluate/")
    (tmp_path / "sweep" / "report").symlink_to(elsewhere)
    assert collect.main([str(tmp_path / "sweep")]) == 1
    assert "a link, which is not followed" in capsys.readouterr().err
    assert not list(elsewhere.iterdir())


def test_a_file_of_rows_is_bounded_and_blamed_itself(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    with file.open("wb") as opened:
        opened.truncate(MOST + 1)
    with pytest.raises(FlowdiffError, match=r"metrics\.csv: more than"):
        Rows(str(tmp_path), str(tmp_path), 0)
    file.write_text('step,a\n1,"' + "x" * 200_000 + '"\n')
    with pytest.raises(FlowdiffError, match=r"metrics\.csv: can't be read"):
        Rows(str(tmp_path), str(tmp_path), 0)


def test_names_of_classes_are_as_many_as_classes_and_not_endless() -> None:
    entry = torch.load(checkpoint("digits"), weights_only=True)["flowdiff"]
    check_entry(entry)
    with pytest.raises(FlowdiffError, match="10 classes and 2 class_names"):
        check_entry(entry | {"class_names": ["a", "b"]})
    with pytest.raises(FlowdiffError, match="its class_names is not"):
        check_entry(entry | {"class_names": ["a" * 200] * 10_000})


@pytest.mark.parametrize(("shape", "rows"), [((1, 8, 8), 64), ((1, 28, 28), 32), ((1, 1024, 1024), 2)])
def test_a_larger_sample_is_made_in_fewer_rows(shape: tuple[int, ...], rows: int) -> None:
    assert default_tile(shape) == rows
