"""trainer.matmul_precision: taken while the run trains and measures, given back afterwards, refused if there's none."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from flowdiff.errors import ConfigError
from flowdiff.training import run
from tests.helpers.command_lines import BARE, Compose
from tests.helpers.runs import train

seen: list[str] = []


class Look(Callback):
    """Notes the precision in training."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        seen.append(torch.get_float32_matmul_precision())


def trained(config: Compose, folder: Path, *words: str) -> dict[str, torch.Tensor]:
    """The weights after two steps."""
    look = f"+callbacks.look._target_={__name__}.Look"
    short = ("trainer.max_steps=2", "trainer.limit_val_batches=1")
    result = train(config(*BARE, *short, look, *words, run_dir=folder))
    return torch.load(result["last"], weights_only=True)["state_dict"]


@pytest.mark.slow
def test_it_lasts_as_long_as_the_run(config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_float32_matmul_precision()
    for word, expected in (("high", "high"), ("medium", "medium"), ("highest", "highest"), ("null", before)):
        seen.clear()
        weights = trained(config, tmp_path / word, f"trainer.matmul_precision={word}")
        assert seen == [expected] * 2 and torch.get_float32_matmul_precision() == before, word
    plain = trained(config, tmp_path / "plain")
    assert all(torch.equal(plain[name], weights[name]) for name in plain), "null is torch's own"

    def fails(*_: object) -> None:
        raise RuntimeError("within it")

    monkeypatch.setattr(run.Run, "fit", fails)
    with pytest.raises(RuntimeError, match="within it"):
        trained(config, tmp_path / "fails", "trainer.matmul_precision=medium")
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize("value", ["tf32", "''", "1", "true", "[high]", "HIGH"])
def test_what_is_no_precision_is_refused(value: str, config: Compose, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trainer.matmul_precision=.*: must be one of highest, high, medium or null"):
        train(config(*BARE, f"trainer.matmul_precision={value}", run_dir=tmp_path / "run"))
    assert not (tmp_path / "run").exists() and torch.get_float32_matmul_precision() == "highest"
