"""Loggers: a run that goes on in its folder keeps its metrics, and wandb is imported late."""

import csv
import warnings
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import loggers

from flowdiff.errors import FlowdiffError


class CSVLogger(loggers.CSVLogger):
    """Lightning's CSV logger deletes an earlier metrics.csv in its folder; this one appends to it."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer, which knows the columns that are there already."""
        if self._experiment is None:
            file = Path(self.log_dir, "metrics.csv")
            kept = file.read_bytes() if file.is_file() else b""
            aside = file.with_name("metrics.csv.kept")
            if kept:
                file.rename(aside)  # on the disk at every moment
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the folder is not empty
                writer = super().experiment
            if kept:
                aside.rename(file)
                with file.open(newline="") as lines:
                    writer.metrics_keys = next(csv.reader(lines))
        return super().experiment


def wandb_logger(**settings: Any) -> loggers.Logger:
    """Lightning's `WandbLogger`; a clear line where wandb isn't installed."""
    try:
        return loggers.WandbLogger(**settings)
    except ModuleNotFoundError as error:
        raise FlowdiffError("logger=wandb: wandb is not installed; pip install 'flowdiff[wandb]'") from error
