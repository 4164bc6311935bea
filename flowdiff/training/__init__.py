"""Training by Lightning: one run, its modules, callbacks and loggers."""

from flowdiff.training.autoencoder import Autoencoder
from flowdiff.training.callbacks import (
    EMA,
    Checkpoints,
    DenoisingGrid,
    PowerAverages,
    Reconstructions,
    SampleGrid,
    Scalars,
    TrainingProgress,
    ValidationMetrics,
)
from flowdiff.training.loggers import CSVLogger, TensorBoardLogger, wandb_logger
from flowdiff.training.optimizers import AdamW, Muon
from flowdiff.training.request import TrainRequest
from flowdiff.training.run import train

__all__ = [
    "EMA",
    "AdamW",
    "Autoencoder",
    "CSVLogger",
    "Checkpoints",
    "DenoisingGrid",
    "Muon",
    "PowerAverages",
    "Reconstructions",
    "SampleGrid",
    "Scalars",
    "TensorBoardLogger",
    "TrainRequest",
    "TrainingProgress",
    "ValidationMetrics",
    "train",
    "wandb_logger",
]
