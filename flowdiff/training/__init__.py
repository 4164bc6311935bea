"""Training by Lightning: one run, its modules, callbacks and loggers."""

from flowdiff.training.autoencoder import Autoencoder
from flowdiff.training.callbacks import (
    EMA,
    Checkpoints,
    DenoisingGrid,
    Reconstructions,
    SampleGrid,
    Scalars,
    TrainingProgress,
    ValidationMetrics,
)
from flowdiff.training.loggers import CSVLogger, TensorBoardLogger, wandb_logger

__all__ = [
    "EMA",
    "Autoencoder",
    "CSVLogger",
    "Checkpoints",
    "DenoisingGrid",
    "Reconstructions",
    "SampleGrid",
    "Scalars",
    "TensorBoardLogger",
    "TrainingProgress",
    "ValidationMetrics",
    "wandb_logger",
]
