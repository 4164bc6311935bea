"""What happens beside the optimisation."""

from flowdiff.training.callbacks.average import EMA
from flowdiff.training.callbacks.checkpoints import Checkpoints
from flowdiff.training.callbacks.metrics import ValidationMetrics
from flowdiff.training.callbacks.pictures import DenoisingGrid, Reconstructions, SampleGrid
from flowdiff.training.callbacks.power import PowerAverages
from flowdiff.training.callbacks.progress import TrainingProgress
from flowdiff.training.callbacks.scalars import Scalars

__all__ = [
    "EMA",
    "Checkpoints",
    "DenoisingGrid",
    "PowerAverages",
    "Reconstructions",
    "SampleGrid",
    "Scalars",
    "TrainingProgress",
    "ValidationMetrics",
]
