"""A dataset as Lightning's trainer wants it."""

from typing import Any

from lightning.pytorch import LightningDataModule

from flowdiff.data.base import ImageData
from flowdiff.data.loader import TensorLoader


class DataModule(LightningDataModule):
    """The batches of a dataset, of which each of the trainer's processes sees its own rows.

    Args:
        data: the dataset.
    """

    def __init__(self, data: ImageData) -> None:
        super().__init__()
        self.data = data

    def train_dataloader(self) -> TensorLoader:
        """Shuffled batches; in the data's own order where the trainer is to overfit some of them."""
        assert self.trainer is not None
        return self._batches("train", shuffle=not getattr(self.trainer, "overfit_batches", 0))

    def val_dataloader(self) -> TensorLoader:
        """All validation data in their own order."""
        return self._batches("val")

    def test_dataloader(self) -> TensorLoader:
        """All test data in their own order."""
        return self._batches("test")

    def _batches(self, split: str, **options: Any) -> TensorLoader:
        assert self.trainer is not None
        return self.data.batches(split, rank=self.trainer.global_rank, world_size=self.trainer.world_size, **options)
