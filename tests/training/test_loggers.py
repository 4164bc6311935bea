"""The rows of metrics.csv and TensorBoard's events: on the disk before a checkpoint has their steps, none lost or twice
when a run goes on."""

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flowdiff.errors import FlowdiffError
from flowdiff.training.callbacks.checkpoints import Checkpoints
from flowdiff.training.loggers import CSVLogger
from tests.helpers.command_lines import Compose
from tests.helpers.runs import train

WORDS = ("callbacks=minimal", "metrics=[]", "decay_steps=12", "trainer.max_steps=12", "trainer.val_check_interval=4")
WORDS += ("trainer.limit_val_batches=1", "callbacks.checkpoints.every_n_steps=3")


def rows(run: Path) -> list[dict[str, str]]:
    """Of metrics.csv, without what depends on the clock."""
    with (run / "csv" / "metrics.csv").open(newline="") as lines:
        return [{k: v for k, v in row.items() if v and "per_second" not in k} for row in csv.DictReader(lines)]


def points(run: Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's scalars; those of the validation are a run of their own."""
    drawn = {}
    for folder in sorted({events.parent for events in (run / "tensorboard").rglob("events*")}):
        found = EventAccumulator(str(folder)).Reload()
        tags = [tag for tag in found.Tags()["scalars"] if "per_second" not in tag]
        assert all(tag.startswith("val/") == (folder.name == "val") for tag in tags)
        drawn |= {tag: [(point.step, point.value) for point in found.Scalars(tag)] for tag in tags}
    return drawn


@pytest.mark.slow
def test_a_run_that_goes_on_has_each_row_once(config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, aside = tmp_path / "run", tmp_path / "aside"
    aside.mkdir()
    save = Checkpoints.save_last

    def saved(self: Checkpoints, trainer: Trainer) -> None:
        save(self, trainer)
        step = trainer.global_step
        assert max(int(row["step"]) for row in rows(run)) >= step - 1, "on the disk with its checkpoint"
        assert points(run)["train/loss"][-1][0] >= step - 1
        shutil.copy(self.last_path, aside / f"{step}.ckpt")

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save_last", saved)
        train(config(*WORDS))
    whole, drawn = rows(run), points(run)
    assert [row["step"] for row in whole if "train/loss" in row] == ["2", "4", "6", "8", "10", "12"]
    assert [row["step"] for row in whole if "val/loss" in row] == ["4", "8", "12"]
    assert [step for step, _ in drawn["val/loss"]] == [4, 8, 12]
    for step in (3, 6, 9):  # between two rows, at one
        with (run / "csv" / "metrics.csv").open("a") as file:
            file.write("0,11,0.1")  # cut off
        train(config(*WORDS, f"ckpt_path={aside}/{step}.ckpt"))
        assert rows(run) == whole
        assert points(run) == drawn
    train(config(*WORDS))  # from its beginning, in the same folder
    assert rows(run) == whole and points(run) == drawn


def logger(tmp_path: Path, last_step: float = 8) -> CSVLogger:
    found = CSVLogger(str(tmp_path), name=None, version="csv")
    found.last_step = last_step
    return found


def test_each_row_is_on_the_disk_and_new_columns_find_their_place(tmp_path: Path) -> None:
    one = logger(tmp_path)
    one.log_metrics({"b": 1.0}, 1)
    assert rows(tmp_path) == [{"b": "1.0", "step": "1"}]
    one.log_metrics({"a": 2.0, "b": float("nan")}, 8)
    one.log_metrics({"b": 3.0}, 9)
    expected = [{"b": "1.0", "step": "1"}, {"a": "2.0", "b": "nan", "step": "8"}, {"b": "3.0", "step": "9"}]
    assert rows(tmp_path) == expected
    shutil.rmtree(tmp_path / "csv")
    one.log_metrics({"a": 4.0}, 10)
    assert rows(tmp_path) == [{"a": "4.0", "step": "10"}], "the folder is made again"


@pytest.mark.parametrize("end", ["", "\n", "\n3.0", "\n3.0,9", "\n3.0,9\n", "\n3.0\n", "\n,x\n", '\n"3.0,9\n'])
def test_what_a_killed_process_leaves_is_repaired(end: str, tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "metrics.csv").write_text("a,step\n1.0,1\n2.0,8" + end)
    one = logger(tmp_path)
    one.log_metrics({"a": 5.0}, 9)
    kept = ["1", "8"] if end else ["1"]
    assert [row["step"] for row in rows(tmp_path)] == [*kept, "9"]
    assert [path.name for path in (tmp_path / "csv").iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize("what", [".", "csv", "tensorboard", "checkpoints"])
def test_a_folder_that_is_removed_in_mid_run(
    what: str, config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run, removed = tmp_path / "run", (tmp_path / "run" / what).resolve()
    original = Checkpoints.on_train_batch_end

    def remove(self: Checkpoints, trainer: Trainer, *given: Any) -> None:
        if trainer.global_step == 4:
            shutil.rmtree(removed)
        original(self, trainer, *given)

    monkeypatch.setattr(Checkpoints, "on_train_batch_end", remove)
    if what in ("csv", "checkpoints"):
        train(config(*WORDS))
        assert rows(run)[-1]["step"] == "12" and (run / "checkpoints" / "last.ckpt").is_file()
    else:
        with pytest.raises(FlowdiffError, match=f"{removed}: removed while the program was writing to it"):
            train(config(*WORDS))
        assert not removed.exists()
    assert "Traceback" not in capfd.readouterr().err
