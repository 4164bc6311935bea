"""Loggers: a run that goes on in its folder keeps its metrics, TensorBoard can tell a sweep's runs apart, and wandb is
imported late."""

import csv
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from hydra.core.hydra_config import HydraConfig
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import loggers

from flowdiff.errors import FlowdiffError
from flowdiff.options import OUTSIDE
from flowdiff.swept import run_name, swept_keys, values_of


class CSVLogger(loggers.CSVLogger):
    """Lightning's CSV logger deletes an earlier metrics.csv in its folder; this one appends to it.

    Args:
        save_dir: the run folder.
        settings: Lightning's others.
    """

    def __init__(self, save_dir: Annotated[str, OUTSIDE], **settings: Any) -> None:
        super().__init__(save_dir, **settings)

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


class TensorBoardLogger(loggers.TensorBoardLogger):
    """Lightning's, in ``<save_dir>/tensorboard``. In a sweep the folder is named by what is swept, as TensorBoard shows
    that name: 0/n_flows-1_activation-elu.

    A run that goes on where events are already goes on in their folder. The rows of HParams are `flowdiff.boards`'.

    Args:
        save_dir: the run folder.
        settings: Lightning's others.
    """

    def __init__(self, save_dir: Annotated[str, OUTSIDE], **settings: Any) -> None:
        events = sorted(Path(save_dir).glob("*/events.out.tfevents*"), key=lambda file: file.stat().st_mtime)
        folder = events[-1].parent.name if events else named() or "tensorboard"
        plain = {"name": None, "version": folder, "default_hp_metric": False}
        super().__init__(save_dir, **{**plain, **settings})

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Lightning adds the epoch to all that it logs; the budget is in steps, and its curve a group of its own."""
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)


def named() -> str:
    """What the present job's sweep varies, with this job's values; "" where there is no sweep."""
    keys = swept_keys()
    words = values_of(HydraConfig.get().overrides.task) if keys else {}
    return run_name({key: value for key, value in words.items() if key in keys})


def wandb_logger(save_dir: Annotated[str, OUTSIDE], **settings: Any) -> loggers.Logger:
    """Lightning's `WandbLogger`; a clear line where wandb isn't installed."""
    try:
        return loggers.WandbLogger(save_dir=save_dir, **settings)
    except ModuleNotFoundError as error:
        raise FlowdiffError("logger=wandb: wandb is not installed; pip install 'flowdiff[wandb]'") from error
