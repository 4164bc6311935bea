"""trainer=ddp: two processes are one process with both batches: gradients, average, validation, logs, sweeps.

A process draws its noise from (seed, step, rank). The run of one process that is compared with takes the same rows and,
for each half of them, the seed of the process that had it.
"""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowdiff.model import checkpoint
from flowdiff.training.diffusion import Diffusion
from tests.helpers.command_lines import TINY, Command, Compose, run_folders, status
from tests.helpers.runs import train
from tests.helpers.states import states

pytestmark = pytest.mark.slow

Batch = tuple[Tensor, Tensor]
HALF = 24
LOSSES = ("likelihood", "denoising")
#: Gradients are clipped; the last validation batch is smaller; the class, dropout and augmentation are drawn too.
WORDS = (*TINY, "callbacks=minimal", "trainer.max_steps=4", "trainer.val_check_interval=4", "decay_steps=8")
WORDS += ("trainer.gradient_clip_val=0.05", "callbacks.ema.decay=0.5", "trainer.log_every_n_steps=4")


def halves(parts: int, seeds: str, of: Callable[[Tensor, int], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step of one process is that of `parts` smaller ones, each with its rows and its own seed.

    Args:
        parts: number of them.
        seeds: what tells their seeds apart, "rank" or "micro_step".
        of: the rows of a batch that one of them has.
        monkeypatch: replaces the module's steps.
    """
    step, validation, seed = Diffusion.training_step, Diffusion.validation_step, Diffusion._seed
    now = {"rank": 0}

    def seeded(self: Diffusion, number: int) -> None:
        monkeypatch.setattr(Diffusion, "global_rank", now["rank"])
        seed(self, number)

    def each(self: Diffusion, batch: Batch, call: Callable[[Batch], Any]) -> list[Any]:
        found = []
        for part in range(parts):
            now["rank"] = part if seeds == "rank" else 0
            found.append(call(tuple(of(t, part) for t in batch)))  # type: ignore[arg-type]
        now["rank"] = 0
        return found

    def training_step(self: Diffusion, batch: Batch, batch_idx: int) -> dict[str, Any]:
        first = self.micro_step

        def one(rows: Batch) -> dict[str, Any]:
            self.micro_step = first if seeds == "rank" else self.micro_step
            return step(self, rows, batch_idx)

        found = each(self, batch, one)
        terms = {name: torch.cat([f["terms"][name] for f in found]) for name in found[0]["terms"]}
        loss = torch.stack([f["loss"] for f in found]).mean()
        return {"loss": loss, "sigma": torch.cat([f["sigma"] for f in found]), "terms": terms}

    def validation_step(self: Diffusion, batch: Batch, batch_idx: int) -> None:
        each(self, batch, lambda rows: validation(self, rows, batch_idx))

    monkeypatch.setattr(Diffusion, "_seed", seeded)
    monkeypatch.setattr(Diffusion, "training_step", training_step)
    if seeds == "rank":
        monkeypatch.setattr(Diffusion, "validation_step", validation_step)


def assert_same_weights(one: Path, other: Path) -> None:
    """Weights, average and what the optimiser has of the gradients."""
    first, second = states(one), states(other)
    assert first["global_step"] == second["global_step"]
    for key in ("current_model_state", "state_dict"):
        a, b = first[key], second[key]
        assert isinstance(a, dict) and isinstance(b, dict)
        for name, value in a.items():
            torch.testing.assert_close(b[name], value, rtol=1e-4, atol=1e-5, msg=f"{key} {name}")
    moments = [s["optimizer_states"][0]["state"] for s in (first, second)]  # type: ignore[index]
    largest = max(float(m["exp_avg"].abs().max()) for m in moments[0].values())
    assert largest > 0
    for i, moment in moments[0].items():  # a mean of the gradients
        assert (moments[1][i]["exp_avg"] - moment["exp_avg"]).abs().max() <= 1e-4 * largest


def logged(run: Path) -> dict[str, float]:
    """The last value of every column of metrics.csv."""
    with (run / "csv" / "metrics.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    return {name: float(value) for row in rows for name, value in row.items() if value and name != "step"}


def test_a_sweep_on_two_processes(
    command: Command, config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = (f"loss={','.join(LOSSES)}", "trainer=ddp", f"dataset.batch_size={HALF}", "metrics=[bits_per_dim]")
    done = command("train", "--multirun", *WORDS, *sweep, "hydra.sweep.dir=sweep", timeout=500)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["sweep"]
    runs = run_folders(tmp_path)
    assert [run.name for run in runs] == ["0", "1"]
    assert done.stdout.count("run folder") == 2
    written = sorted(file.name for pattern in ("metrics*", "*.ckpt") for file in runs[0].rglob(pattern))
    assert written == ["best.ckpt", "last.ckpt", "metrics.csv", "metrics.json"]
    events = {file.name.split(".")[5] for file in runs[0].rglob("events.out.tfevents*")}  # of one process each
    assert len(events) == 1, "more than one process wrote for TensorBoard"

    halves(2, "rank", lambda rows, rank: rows[rank::2], monkeypatch)
    for run, loss in zip(runs, LOSSES, strict=True):
        assert status(run)["status"] == "done"
        assert json.loads((run / "metrics.json").read_text())["bits_per_dim"]["n"] == 360
        alone = tmp_path / "alone" / loss
        words = (*WORDS, f"loss={loss}", f"dataset.batch_size={2 * HALF}", "metrics=[]", "evaluate=null")
        train(config(*words, tiny=False, run_dir=alone))
        assert_same_weights(alone / "checkpoints" / "last.ckpt", run / "checkpoints" / "last.ckpt")
        expected, found = logged(alone), logged(run)
        assert expected.keys() == found.keys()
        for name in expected:
            if name != "train/images_per_second":
                assert found[name] == pytest.approx(expected[name], rel=1e-3), name

    # it goes on, on two processes, in its own folder
    done = command("train", "resume=last", "trainer.max_steps=6", "evaluate=null", cwd=runs[0])
    assert done.returncode == 0, done.stderr
    assert run_folders(tmp_path / "sweep") == runs
    go_on = ("trainer.max_steps=6", f"ckpt_path={tmp_path}/alone/likelihood/checkpoints/last.ckpt")
    words = (*WORDS, "loss=likelihood", f"dataset.batch_size={2 * HALF}", "metrics=[]", "evaluate=null", *go_on)
    train(config(*words, tiny=False, run_dir=tmp_path / "further"))
    assert_same_weights(tmp_path / "further" / "checkpoints" / "last.ckpt", runs[0] / "checkpoints" / "last.ckpt")


def test_shares_of_a_model_are_the_whole_one(command: Command, tmp_path: Path) -> None:
    """trainer=fsdp, interrupted in the middle, ends with the checkpoint of trainer=ddp; the loss has a score in it."""
    words = (*WORDS, "loss=mixture", f"dataset.batch_size={HALF}", "logger=csv", "metrics=[]", "evaluate=null")
    runs = (
        ("trainer=ddp", "trainer.max_steps=4", "run_dir=whole"),
        ("trainer=fsdp", "trainer.max_steps=2", "run_dir=first"),
        ("trainer=fsdp", "trainer.max_steps=4", "run_dir=second", "ckpt_path=first/checkpoints/last.ckpt"),
    )
    for more in runs:
        done = command("train", *words, *more, timeout=300)
        assert done.returncode == 0, done.stderr
    one, two = (tmp_path / run / "checkpoints" / "last.ckpt" for run in ("whole", "second"))
    assert_same_weights(one, two)
    states_of = [checkpoint.read(path) for path in (one, two)]
    groups = [state["optimizer_states"][0]["param_groups"] for state in states_of]
    assert groups[0] == groups[1] and states_of[0]["averaging_state"] == states_of[1]["averaging_state"]
    assert checkpoint.load(two)[0].state_dict().keys() == checkpoint.load(one)[0].state_dict().keys()
    expected, found = logged(tmp_path / "whole"), logged(tmp_path / "second")
    for name in ("train/lr", "val/loss", "val/bits_per_dim"):  # others are means since the last line
        assert found[name] == pytest.approx(expected[name], rel=1e-4), name


def test_accumulated_batches_are_one_step(config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, average, learning rate and scalars after N steps of two batches are those of N twice as large ones."""
    words = (*WORDS, "metrics=[]", "evaluate=null", "logger=csv", "trainer.log_every_n_steps=2")
    accumulate = ("trainer.accumulate_grad_batches=2", f"dataset.batch_size={HALF}", "trainer.limit_val_batches=1")
    train(config(*words, *accumulate, tiny=False, run_dir=tmp_path / "two"))
    halves(2, "micro_step", lambda rows, part: rows[part * HALF : (part + 1) * HALF], monkeypatch)
    large = (f"dataset.batch_size={2 * HALF}", "trainer.limit_val_batches=1")
    train(config(*words, *large, tiny=False, run_dir=tmp_path / "one"))
    one, two = (tmp_path / run / "checkpoints" / "last.ckpt" for run in ("one", "two"))
    assert_same_weights(one, two)
    assert checkpoint.read(two)["averaging_state"]["n_averaged"] == 4
    rows = []
    for run in ("one", "two"):
        with (tmp_path / run / "csv" / "metrics.csv").open() as lines:
            rows.append([row for row in csv.DictReader(lines) if row["train/loss"]])
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]] == ["2", "4"]
    for a, b in zip(*rows, strict=True):
        for name in ("train/loss", "train/grad_norm", "train/lr"):
            assert float(b[name]) == pytest.approx(float(a[name]), rel=1e-4), name


def test_the_average_counts_steps(config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, from the weights after each step of the optimiser."""
    from flowdiff.training.callbacks.scalars import Scalars

    kept: list[dict[str, Tensor]] = []
    after = Scalars.on_train_batch_end

    def noted(self: Scalars, trainer: Any, module: Diffusion, *given: Any) -> None:
        if trainer.global_step == len(kept) + 1:
            kept.append({name: value.detach().clone() for name, value in module.state_dict().items()})
        after(self, trainer, module, *given)

    monkeypatch.setattr(Scalars, "on_train_batch_end", noted)
    words = ("callbacks=minimal", "logger=none", "metrics=[]", "evaluate=null", "trainer.accumulate_grad_batches=3")
    train(config(*words, "trainer.max_steps=4", "trainer.limit_val_batches=1", "callbacks.ema.decay=0.3"))
    assert len(kept) == 4
    average = kept[0]
    for n, weights in enumerate(kept[1:], 1):
        decay = min(0.3, (1 + n) / (10 + n))
        average = {
            name: torch.lerp(value, weights[name], 1 - decay) if value.is_floating_point() else weights[name]
            for name, value in average.items()
        }
    found = checkpoint.read(tmp_path / "run" / "checkpoints" / "last.ckpt")["state_dict"]
    for name, value in average.items():
        torch.testing.assert_close(found[name], value, msg=name)


def test_a_launcher_with_processes_of_its_own_is_refused(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ("trainer=ddp", "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=1")
    done = command("train", "--multirun", *WORDS, *words, "logger=none")
    assert done.returncode == 1
    assert "trainer.devices=2: jobs of several processes run one after the other: leave out hydra/launcher=" in (
        done.stderr
    )
