"""Under Lightning's Trainer: a run resumed from any checkpoint sees the batches that the whole run saw."""

import warnings
from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from flowdiff.data.digits import Digits
from flowdiff.training.data_module import DataModule


class Recorder(lightning.LightningModule):
    """Remembers what it was shown."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch, batch_idx):
        k, labels = batch
        self.seen.append((int(k.long().sum()), labels.tolist()))
        return (self.weight * k.float().mean()).sum()

    def validation_step(self, batch, batch_idx):
        return None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder, steps, every, ckpt_path=None, **options):
    module = Recorder()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=steps,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(folder, every_n_train_steps=every, save_top_k=-1, filename="{step}")],
        **({"max_epochs": -1} | options),
    )
    trainer.fit(module, DataModule(Digits(batch_size=400, seed=1)), ckpt_path=ckpt_path, weights_only=True)
    return module.seen


@pytest.mark.parametrize("options", [{}, {"val_check_interval": 2}, {"limit_train_batches": 2}], ids=str)
def test_resumed_runs_see_what_the_whole_run_saw(tmp_path, options):
    whole = fit(tmp_path, 8, 1, **options)  # three batches an epoch, or two
    assert len(whole) == 8 and whole[0] not in whole[1:]
    for step in range(1, 8):
        resumed = fit(tmp_path / "again", 8, 100, ckpt_path=str(tmp_path / f"step={step}.ckpt"), **options)
        assert resumed == whole[step:], step


def test_resuming_an_epoch_based_run(tmp_path):
    options = {"max_epochs": 3}
    whole = fit(tmp_path, -1, 1, **options)
    assert len(whole) == 9
    for step in (1, 3, 5, 6):
        assert fit(tmp_path / "again", -1, 100, str(tmp_path / f"step={step}.ckpt"), **options) == whole[step:], step


def test_overfitting_shows_the_same_batches_in_each_epoch(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seen = fit(tmp_path, 6, 100, overfit_batches=2)
    assert not [warning for warning in caught if "shuffling" in str(warning.message)]
    assert seen[:2] == seen[2:4] == seen[4:6] and seen[0] != seen[1]


def test_each_process_sees_its_own_rows():
    """As the data give them: a third of the rows each, the test's and the validation's in their own order."""
    data = Digits(batch_size=50)
    for overfit_batches in (0, 2):
        seen = []
        for rank in range(3):
            module = DataModule(data)
            module.trainer = SimpleNamespace(global_rank=rank, world_size=3, overfit_batches=overfit_batches)
            seen.append(module.train_dataloader().order(0))
            assert torch.equal(module.val_dataloader().order(0), torch.arange(180)[rank::3])
            assert torch.equal(module.test_dataloader().order(0), torch.arange(360)[rank::3])
        rows = torch.stack(seen, 1).flatten()
        assert torch.equal(rows, torch.arange(1257)) == bool(overfit_batches)
        assert torch.equal(rows.sort().values, torch.arange(1257))
