"""A run at the end of its budget says so in one line, before anything is made; one that has only to measure does it."""

import json
from pathlib import Path

import pytest

from flowdiff.commands.train import make_train_request
from flowdiff.errors import ConfigError
from flowdiff.model import checkpoint
from flowdiff.training import going_on
from tests.helpers.command_lines import BARE, Compose
from tests.helpers.runs import train

pytestmark = pytest.mark.slow


def last(run: Path) -> Path:
    return run / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer.max_steps=2"], "trainer.max_steps=2: {ckpt} is at 2 of 2 steps: raise trainer.max_steps"),
        (["trainer.max_epochs=1"], "trainer.max_epochs=1: {ckpt} is at 1 of 1 epochs: raise trainer.max_epochs"),
        (
            ["trainer.max_epochs=1", "callbacks.checkpoints.every_n_steps=3"],  # before Lightning has closed the epoch
            "trainer.max_epochs=1: {ckpt} is at 1 of 1 epochs: raise trainer.max_epochs",
        ),
        (["trainer.max_time=00:00:00:01"], "of 1 seconds: raise trainer.max_time"),
    ],
    ids=["steps", "epochs", "last batch", "time"],
)
def test_nothing_left_is_one_line(words: list[str], message: str, config: Compose, tmp_path: Path) -> None:
    words = [*BARE, "trainer.max_steps=100000", "trainer.limit_train_batches=3", "trainer.limit_val_batches=0", *words]
    train(config(*words))
    file = last(tmp_path / "run")
    with pytest.raises(ConfigError) as caught:
        train(config(*words, f"ckpt_path={file}", run_dir=tmp_path / "new"))
    assert message.format(ckpt=file) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()
    key = str(caught.value).partition("=")[0]
    more = {"trainer.max_steps": "3", "trainer.max_epochs": "2", "trainer.max_time": "00:00:00:02"}[key]
    step = checkpoint.read(file)["global_step"]
    train(config(*words, f"ckpt_path={file}", f"{key}={more}", run_dir=tmp_path / "new"))
    assert checkpoint.read(last(tmp_path / "new"))["global_step"] > step


def test_a_run_that_was_killed_while_it_measured_only_measures(config: Compose, tmp_path: Path) -> None:
    words = ("callbacks=minimal", "logger=none", "metrics=[denoising]", "trainer.max_steps=2")
    train(config(*words))
    found = tmp_path / "run" / "metrics.json"
    before = json.loads(found.read_text())
    found.unlink()
    train(config(*words, f"ckpt_path={last(tmp_path / 'run')}"))
    assert json.loads(found.read_text()) == before
    with pytest.raises(ConfigError, match="at 2 of 2 steps"):
        train(config(*words, f"ckpt_path={last(tmp_path / 'run')}"))
    train(config(*words, f"ckpt_path={last(tmp_path / 'run')}", "resume_sweep=true"))  # its sweep goes on


def test_a_foreign_checkpoints_numbers_are_no_budget(config: Compose, tmp_path: Path) -> None:
    words = (f"ckpt_path={tmp_path}/a", "trainer.max_steps=3", "trainer.max_epochs=1", "trainer.max_time={seconds:1}")
    request, _ = make_train_request(config(*words))
    for content in ({}, {"global_step": "9", "loops": None, "callbacks": []}, {"loops": {"fit_loop": {}}}):
        going_on.check_left(content, request)
    with pytest.raises(ConfigError, match="at 2.5 of 1 seconds"):
        going_on.check_left({"callbacks": {"Timer": {"time_elapsed": {"train": 2.5}}}}, request)
