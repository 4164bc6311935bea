"""callbacks=averages in a run: what it writes, and what a run that goes on takes over."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

import flowdiff
from flowdiff.errors import FlowdiffError
from flowdiff.model import averages, checkpoint
from flowdiff.training.callbacks.power import PowerAverages
from tests.helpers.command_lines import Compose
from tests.helpers.runs import train
from tests.helpers.states import equal

pytestmark = pytest.mark.slow

WORDS = (
    "callbacks=averages",
    "callbacks.sample_grid=null",
    "callbacks.denoising_grid=null",
    "logger=none",
    "metrics=[]",
)
WORDS += ("evaluate=null", "callbacks.averages.snapshots=8", "decay_steps=16")


class Follow(Callback):
    """Keeps the weights after each step."""

    seen: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        self.seen.append({name: p.detach().clone() for name, p in pl_module.denoiser.named_parameters()})


def last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def held(folder: Path) -> Any:
    return checkpoint.read(last(folder))["callbacks"]["PowerAverages"]


def same_snapshots(one: Path, other: Path) -> bool:
    files = [averages.snapshots(folder / averages.FOLDER) for folder in (one, other)]
    return files[0].keys() == files[1].keys() and all(
        files[0][step].read_bytes() == files[1][step].read_bytes() for step in files[0]
    )


def test_any_length_is_the_sum_over_all_steps(config: Compose, tmp_path: Path) -> None:
    Follow.seen = []
    follow = ("+callbacks.follow._target_=" + f"{__name__}.Follow", "trainer.max_steps=16", "lr=1e-2")
    train(config(*WORDS, *follow, "decay_steps=1000"))
    t, length = torch.arange(17, dtype=torch.float64), 0.15
    power = averages.exponent(length) + 1
    shares = (t[1:] ** power - t[:-1] ** power) / t[-1] ** power
    found = checkpoint.read_model(last(tmp_path / "run"), f"ema:{length}")
    assert found.facts.weights == "ema:0.15"
    moved = 0.0
    for name in Follow.seen[0]:
        expected = sum(share * step[name].double() for share, step in zip(shares, Follow.seen, strict=True))
        torch.testing.assert_close(found.state[name].double(), expected, rtol=1e-3, atol=5e-4, msg=name)
        moved = max(moved, float((Follow.seen[-1][name] - expected).abs().max()))
    assert moved > 1e-2, "the average is not the last step's weights"
    names = [path.name for path in averages.snapshots(tmp_path / "run" / "averages").values()]
    assert names == [f"step-{step:06d}.safetensors" for step in range(2, 17, 2)]


def test_a_run_that_goes_on_takes_over_and_ends_with_the_whole_runs(config: Compose, tmp_path: Path) -> None:
    whole, first, second = (tmp_path / name for name in ("whole", "first", "second"))
    every = ("callbacks.averages.snapshots=8", "trainer.max_steps=16")
    train(config(*WORDS, *every, run_dir=whole))
    train(config(*WORDS, "callbacks.averages.snapshots=3", "trainer.max_steps=6", run_dir=first))
    train(config(*WORDS, *every, f"ckpt_path={last(first)}", run_dir=second))
    assert equal(held(whole), held(second)) and same_snapshots(whole, second)
    train(config(*WORDS, *every, f"ckpt_path={last(first)}", run_dir=first))  # in its own folder
    assert equal(held(whole), held(first)) and same_snapshots(whole, first)
    train(config(*WORDS, "callbacks.averages.snapshots=1", "trainer.max_steps=3", run_dir=first))  # a new run in it
    assert list(averages.snapshots(first / "averages")) == [3]


def test_a_run_without_them_goes_on_with_them(config: Compose, tmp_path: Path) -> None:
    train(config(*WORDS, "callbacks.averages=null", "trainer.max_steps=4", run_dir=tmp_path / "a"))
    with pytest.raises(FlowdiffError, match="kept no averages of which others are made: it takes callbacks=averages"):
        flowdiff.load(last(tmp_path / "a"), weights="ema:0.08")
    before = checkpoint.read(last(tmp_path / "a"))["current_model_state"]
    go_on = ("trainer.max_steps=5", f"ckpt_path={last(tmp_path / 'a')}")
    train(config(*WORDS, *go_on, run_dir=tmp_path / "b"))
    after = checkpoint.read(last(tmp_path / "b"))["current_model_state"]
    kept = averages.keep(5, averages.exponent(0.05))
    for name, average in held(tmp_path / "b")[averages.KEY]["0.05"].items():
        torch.testing.assert_close(average, torch.lerp(before[name], after[name], 1 - kept), msg=name)


def test_averages_of_another_model_are_one_line(config: Compose) -> None:
    callback = PowerAverages()
    callback.load_state_dict({averages.KEY: {"0.05": {"weight": torch.zeros(2)}, "0.1": {"weight": torch.zeros(2)}}})
    trainer: Any = type("T", (), {"global_step": 3, "ckpt_path": None, "is_global_zero": True, "default_root_dir": "."})
    with pytest.raises(FlowdiffError, match="its average of weight is not that of this model"):
        callback.on_train_start(trainer, torch.nn.Linear(3, 1))  # type: ignore[arg-type]
