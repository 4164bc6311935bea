"""The average of the weights and who sees it, checkpoints, scalars, pictures."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flowdiff.errors import ConfigError
from flowdiff.model import checkpoint
from flowdiff.training import run
from flowdiff.training.callbacks import metrics, pictures
from flowdiff.training.callbacks.average import EMA
from flowdiff.training.callbacks.checkpoints import Checkpoints
from tests.helpers.command_lines import BARE, Compose
from tests.helpers.runs import train


class Follow(Callback):
    """Computes the average beside the run, from the raw weights after each step."""

    def __init__(self, decay: float) -> None:
        self.decay, self.n = decay, 0
        self.average: list[torch.Tensor] = []
        self.raw: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        self.raw = [p.detach().clone() for p in pl_module.denoiser.parameters()]
        if self.n == 0:
            self.average = [p.clone() for p in self.raw]
        else:
            d = min(self.decay, (1 + self.n) / (10 + self.n))
            self.average = [a + (1 - d) * (w - a) for a, w in zip(self.average, self.raw, strict=True)]
        self.n += 1


def same(parameters: Any, others: list[torch.Tensor]) -> bool:
    return all(torch.allclose(a, b, atol=1e-6) for a, b in zip(parameters, others, strict=True))


@pytest.mark.slow
def test_validation_pictures_metrics_and_checkpoints_see_the_average(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow, seen = Follow(0.999), {}

    def look(name: str, original: Any) -> Any:
        def wrapped(self: Any, module: Any, *rest: Any) -> Any:
            module = module if hasattr(module, "denoiser") else self
            weights = list(module.denoiser.parameters())
            seen[name] = (same(weights, follow.average), same(weights, follow.raw))
            return original(self, module if original.__name__ == "picture" else rest[0], *rest[1:])

        return wrapped

    monkeypatch.setattr(pictures.SampleGrid, "picture", look("grid", pictures.SampleGrid.picture))
    monkeypatch.setattr(pictures.DenoisingGrid, "picture", look("denoising", pictures.DenoisingGrid.picture))
    validation = run.Diffusion.validation_step

    def validation_step(self: Any, batch: Any, batch_idx: int) -> None:
        weights = list(self.denoiser.parameters())
        seen["validation"] = (same(weights, follow.average), same(weights, follow.raw))
        validation(self, batch, batch_idx)

    measured = metrics.measure

    def measure(metrics: Any, model: Any) -> Any:
        weights = list(model.denoiser.parameters())
        seen["metric"] = (same(weights, follow.average), same(weights, follow.raw))
        return measured(metrics, model)

    monkeypatch.setattr(run.Diffusion, "validation_step", validation_step)
    monkeypatch.setattr(metrics, "measure", measure)
    original = run.build_trainer
    monkeypatch.setattr(run, "build_trainer", lambda c, callbacks, *r: original(c, [follow, *callbacks], *r))
    words = ("callbacks=fd", "logger=none", "metrics=[]", "evaluate=null", "lr=0.01", "trainer.max_steps=6")
    train(config(*words, "callbacks.metrics.metrics.fd.num_samples=8", "callbacks.sample_grid.rows=1"))

    assert follow.n == 6
    assert not same(follow.average, follow.raw)
    assert seen == dict.fromkeys(("validation", "grid", "denoising", "metric"), (True, False))
    for name in ("best", "last"):
        path = tmp_path / "run" / "checkpoints" / f"{name}.ckpt"
        assert same(checkpoint.load(path)[0].parameters(), follow.average)
        assert same(checkpoint.load(path, weights="raw")[0].parameters(), follow.raw)


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_a_wrong_decay_is_refused(decay: float) -> None:
    with pytest.raises(ConfigError, match="decay"):
        EMA(decay)
    with pytest.raises(ConfigError, match="every_n_steps=0"):
        Checkpoints("x", every_n_steps=0)


def test_the_average_lies_where_the_model_will_be_trained() -> None:
    average, trainer = EMA(), SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta")))
    average.setup(trainer, LightningModule(), "fit")  # type: ignore[arg-type]
    assert average._average_model is not None
    assert average._average_model.n_averaged.device.type == "meta", "at this time the model is still on the CPU"


def test_scalars_pictures_and_hyperparameters_reach_tensorboard_and_csv(config: Compose, tmp_path: Path) -> None:
    result = train(
        config(
            "metrics=[bits_per_dim]",
            "trainer.max_steps=8",
            "trainer.val_check_interval=4",
            "callbacks.sample_grid.columns=2",
            "callbacks.denoising_grid.columns=2",
        )
    )
    run = tmp_path / "run"
    assert 2 < result["metrics"]["bits_per_dim"]["value"] < 4.1, "between a good model and equal levels, log2 17"
    assert (run / "metrics.json").is_file()
    with (run / "csv" / "metrics.csv").open() as lines:
        columns = set(next(csv.reader(lines)))
    wanted = {"train/loss", "train/nll", "train/grad_norm", "train/lr", "train/images_per_second"}
    wanted |= {"train/loss_by_sigma/0.2-0.5", "val/loss", "val/bits_per_dim"}
    assert wanted <= columns
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    validated = EventAccumulator(str(run / "tensorboard" / "val")).Reload()
    assert wanted <= {*events.Tags()["scalars"], *validated.Tags()["scalars"]}
    assert set(events.Tags()["images"]) == {"images/samples", "images/denoising"}
    assert all(len(events.Images(f"images/{name}")) == 2 for name in ("samples", "denoising")), "one a validation"
    assert "final/bits_per_dim" in events.Tags()["scalars"]
    assert "_hparams_/session_start_info" in events.summary_metadata
    for folder in ("samples", "denoising"):
        assert len(list((run / folder).glob("step_*.png"))) == 2
    with (run / "csv" / "metrics.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["train/lr"]]
    assert float(rows[-1]["train/lr"]) < float(rows[0]["train/lr"])
    assert all(float(row["train/images_per_second"]) > 0 for row in rows)


def test_the_grid_shows_the_same_noise_each_time(config: Compose, tmp_path: Path) -> None:
    words = ("logger=none", "metrics=[]", "evaluate=null", "trainer.max_steps=2", "trainer.val_check_interval=1")
    train(config(*words, "lr=1e-12", "callbacks.sample_grid.rows=1", "callbacks.denoising_grid.columns=2"))
    for folder in ("samples", "denoising"):
        first, second = sorted((tmp_path / "run" / folder).glob("*.png"))
        assert first.read_bytes() == second.read_bytes()


def test_best_is_the_lowest_and_last_is_the_last(config: Compose, tmp_path: Path) -> None:
    words = (*BARE, "trainer.max_steps=6", "trainer.val_check_interval=2", "callbacks.checkpoints.monitor=val/loss")
    values: list[tuple[int, float]] = []

    class Note(Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            values.append((trainer.global_step, float(trainer.callback_metrics["val/loss"])))

    original = run.build_trainer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "build_trainer", lambda c, callbacks, *r: original(c, [Note(), *callbacks], *r))
        train(config(*words, "lr=0.05", "warmup_steps=0"))
    best = checkpoint.read(tmp_path / "run" / "checkpoints" / "best.ckpt")["global_step"]
    assert best == min(values, key=lambda value: value[1])[0]
    assert checkpoint.read(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 6
