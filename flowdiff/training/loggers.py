"""Loggers: a run that goes on in its folder keeps its metrics, TensorBoard can tell a sweep's runs apart, and wandb is
imported late."""

import csv
import io
import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import loggers
from lightning.pytorch.loggers import csv_logs
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from flowdiff.errors import FlowdiffError, how_to_install
from flowdiff.files import require_folder, write_atomically
from flowdiff.options import OUTSIDE
from flowdiff.runs.command_line import CommandLine
from flowdiff.runs.words import run_name, values_of
from flowdiff.training import tensorboard
from flowdiff.training.tensorboard import VALIDATION

_traceback = threading.excepthook


def _quietly(failure: threading.ExceptHookArgs) -> None:
    """What fails in TensorBoard's thread is raised again where the run writes next: once is enough."""
    if not isinstance(failure.thread, _AsyncWriterThread):
        _traceback(failure)


threading.excepthook = _quietly


class Rows(csv_logs.ExperimentWriter):
    """The rows of metrics.csv: each is on the disk when it has been logged, the file is whole at every moment.

    Args:
        log_dir: the file's folder; made again if it is removed.
        run_dir: the run's, which is not.
        last_step: of an earlier file the rows up to this step are kept; the others will be written again.
    """

    def __init__(self, log_dir: str, run_dir: str, last_step: float) -> None:
        self.metrics, self.hparams, self.log_dir, self.run_dir = [], {}, log_dir, run_dir
        self.file = Path(log_dir, self.NAME_METRICS_FILE)
        kept = [row for row in _rows(self.file) if _step(row) <= last_step]
        self.metrics_keys = sorted(set().union(*kept))
        if self.file.exists():
            self._write(kept)
        self.file.parent.mkdir(parents=True, exist_ok=True)

    def save(self) -> None:
        """Append what was logged; where it has new columns, or the file is gone, write all of it."""
        rows, self.metrics = self.metrics, []
        new = set().union(*rows) - set(self.metrics_keys)
        if not rows:
            return
        require_folder(self.run_dir)
        if new or not self.file.is_file():
            self.metrics_keys = sorted({*self.metrics_keys, *new})
            self._write([*_rows(self.file), *rows])
            return
        with self.file.open("a", newline="") as file:
            csv.DictWriter(file, self.metrics_keys).writerows(rows)

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.metrics_keys)
        if rows:
            writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.file, lambda file: file.write(text.getvalue().encode()), sync=False)


MOST = 1 << 28  # bytes of metrics.csv


def _rows(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file without empty cells; a last line that is not whole is none."""
    if not file.is_file():
        return []
    if file.stat().st_size > MOST:
        raise FlowdiffError(f"{file}: more than {MOST:,} bytes, which no run writes; move it away")
    text = file.read_text(errors="replace")
    whole = text[: text.rfind("\n") + 1]
    try:
        rows = list(csv.reader(io.StringIO(whole, newline="")))
    except csv.Error as error:
        raise FlowdiffError(f"{file}: can't be read ({error}); move it away") from error
    header = rows[0] if rows else []
    return [
        {name: cell for name, cell in zip(header, row, strict=True) if cell}
        for row in rows[1:]
        if len(row) == len(header)
    ]


def _step(row: Mapping[str, str]) -> float:
    try:
        return float(row.get("step", ""))
    except ValueError:
        return math.inf


class CSVLogger(loggers.CSVLogger):
    """Lightning's CSV logger deletes an earlier metrics.csv in its folder and holds rows back, 100 steps long. This one
    goes on in the file (`Rows`).

    Args:
        save_dir: the run folder.
        settings: Lightning's others.
    """

    last_step: float = math.inf

    def __init__(self, save_dir: Annotated[str, OUTSIDE], **settings: Any) -> None:
        super().__init__(save_dir, **{"flush_logs_every_n_steps": 1, **settings})

    def begin(self, last_step: int, command_line: CommandLine) -> None:
        """Called before the first row, with the step of the checkpoint that the run goes on from; −1: a new run."""
        self.last_step = last_step

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer, which knows the rows that are there already."""
        if self._experiment is None:
            self._experiment = Rows(self.log_dir, self.save_dir, self.last_step)
        return self._experiment

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """A row, on the disk at once."""
        super().log_metrics(metrics, steps_behind(metrics, step))


def name_in_sweep(command_line: CommandLine) -> str | None:
    """What tells a job of a sweep from the others, as 0/n_flows-1_activation-elu; None: nothing is swept."""
    values = {key: value for key, value in values_of(command_line.words).items() if key in command_line.swept}
    return run_name(values) if values else None


def steps_behind(metrics: Mapping[str, float], step: int | None) -> int | None:
    """The steps that a model has seen. What Lightning logs itself, a validation's values, has an epoch, and the number
    of the step before: a checkpoint of that step doesn't have them."""
    return None if step is None else step + ("epoch" in metrics)


class TensorBoardLogger(loggers.TensorBoardLogger):
    """Lightning's, in `<save_dir>/tensorboard`. In a sweep the folder is named by what is swept, as TensorBoard shows
    that name: 0/n_flows-1_activation-elu. TensorBoard has a colour for each run: what validation measures is a run of
    its own, `val` in that folder.

    A run that goes on where events are already goes on in their folder; those after `last_step`, the step of its
    checkpoint, are no longer shown. The rows of HParams are `training.tensorboard`'.

    Args:
        save_dir: the run folder.
        settings: Lightning's others.
    """

    def __init__(self, save_dir: Annotated[str, OUTSIDE], **settings: Any) -> None:
        events = sorted(Path(save_dir).glob("*/events.out.tfevents*"), key=lambda file: file.stat().st_mtime)
        folder = events[-1].parent.name if events else "tensorboard"
        self.goes_on = bool(events)
        plain = {"name": None, "version": folder, "default_hp_metric": False}
        super().__init__(save_dir, **{**plain, **settings})
        self._validation: SummaryWriter | None = None

    last_step: float = math.inf

    def begin(self, last_step: int, command_line: CommandLine) -> None:
        """Called before the first row: the folder of a new run in a sweep has the name of what is swept."""
        self.last_step = last_step
        name = name_in_sweep(command_line)
        if name is not None and not self.goes_on and self._version == "tensorboard":
            self._version = name

    def show(self, name: str, picture: Tensor, step: int) -> None:
        """Below IMAGES."""
        self.experiment.add_image(name, picture, step)

    def end(self, final: Mapping[str, float], step: int) -> None:
        """With the end of the row of HParams."""
        tensorboard.end(self.experiment, final, step)

    def close(self, failed: bool) -> None:
        """All that was logged is on the disk."""
        self.finalize("failed" if failed else "success")

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer."""
        if self._experiment is None and self.goes_on and math.isfinite(self.last_step):
            self._kwargs["purge_step"] = int(self.last_step) + 1
        return super().experiment

    def save(self) -> None:
        """Let all that was logged be on the disk, as it is where a checkpoint has its step."""
        super().save()
        for writer in filter(None, (self._experiment, self._validation)):
            writer.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the files."""
        super().finalize(status)
        if self._validation is not None:
            self._validation.close()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Lightning adds the epoch to all that it logs; the budget is in steps, and its curve a group of its own."""
        at = steps_behind(metrics, step)
        validated = {name: value for name, value in metrics.items() if name.startswith(VALIDATION)}
        super().log_metrics({name: value for name, value in metrics.items() if name not in {"epoch", *validated}}, at)
        for name, value in validated.items():
            self._open_validation().add_scalar(name, value, at)

    def _open_validation(self) -> SummaryWriter:
        """The writer of what validation measures, made with its first value: without one there is no such run."""
        if self._validation is None:
            require_folder(self.experiment.log_dir)
            folder = Path(self.experiment.log_dir, tensorboard.group_of(VALIDATION))
            self._validation = SummaryWriter(str(folder), **self._kwargs)
        return self._validation


class WandbLogger(loggers.WandbLogger):
    """Lightning's. A job of a sweep has the name of what is swept."""

    def begin(self, last_step: int, command_line: CommandLine) -> None:
        """Called before anything is logged."""
        name = name_in_sweep(command_line)
        if name is not None:
            self._wandb_init["name"] = name

    def show(self, name: str, picture: Tensor, step: int) -> None:
        """As a medium of the run."""
        self.log_image(name, [picture.permute(1, 2, 0).numpy()], step=step)

    def end(self, final: Mapping[str, float], step: int) -> None:
        """In the run's history and summary."""
        self.log_metrics({f"final/{name}": value for name, value in final.items()}, step)

    def close(self, failed: bool) -> None:
        """wandb has one run in a process: the next job's has to be another."""
        if self._experiment is not None:
            self._experiment.finish(exit_code=int(failed))
            self._experiment = None


def wandb_logger(
    save_dir: Annotated[str, OUTSIDE],
    project: str = "flowdiff",
    name: str | None = None,
    offline: bool = False,
    **settings: Any,
) -> loggers.Logger:
    """`WandbLogger`; a clear line where wandb isn't installed."""
    try:
        return WandbLogger(save_dir=save_dir, project=project, name=name, offline=offline, **settings)
    except ModuleNotFoundError as error:
        raise FlowdiffError(f"logger=wandb: wandb is not installed; {how_to_install('wandb')}") from error
