"""What `flowdiff.train` costs beyond a bare loop over the same training step.

A run of Lightning with the default callbacks, loggers and average is interrupted every `BLOCK` steps for as many of a
bare loop on a copy of the model: the same recipe of a step (batches, augmentation, σ, dropout, loss, clipping, AdamW,
average of the weights), nothing that is logged, seeded, or looked at. Validations, pictures and checkpoints are left
out: they come every so many steps as one wants them.

    ratio      seconds of the CPU of a step in the run over those of one in the loop, blocks side by side
"""

import copy
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from experiments.common.columns import Column, Row
from experiments.common.configurations import train
from experiments.speed.steps import spread
from experiments.speed.timing import milliseconds, ratio
from flowdiff.denoisers.base import Perturbation
from flowdiff.files import write_json
from flowdiff.training.diffusion import Diffusion

BLOCK, WARM = 10, 2  # steps of a block, and blocks that aren't counted
DECAY = 0.999
COLUMNS = (
    Column("words", "training", lambda row: row["words"]),
    spread("run", "ms a step, run"),
    spread("bare", "bare loop"),
    spread("ratio", "ratio", "{:.3f}"),
)
#: Words of the command line after the dataset's experiment.
TRAININGS = ((), ("loss=likelihood",), ("flow=linear", "loss=likelihood"), ("denoiser=unet", "loss=denoising"))


class Bare:
    """The bare loop.

    Args:
        module: of the run; its weights are copied.
    """

    def __init__(self, module: Diffusion) -> None:
        self.request, self.data, self.loss, self.noise = module.request, module.data, module.loss, module.noise
        self.denoiser, self.augmentation = copy.deepcopy(module.denoiser), copy.deepcopy(module.augmentation)
        self.parameters: list[Tensor] = [*self.denoiser.parameters(), *self.augmentation.parameters()]
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=self.request.lr, fused=True)
        self.batches = self.endless()

    def endless(self) -> Iterator[Any]:
        """Batches, epoch after epoch."""
        for _ in itertools.count():
            yield from self.data.batches("train")

    def step(self) -> None:
        """One training step."""
        k, labels = next(self.batches)
        k, shift = self.augmentation(k, self.data.levels)
        x0 = self.data.to_model(k)
        drop = torch.rand(len(x0)) < self.request.label_dropout
        sigma, eps = self.noise(len(x0), x0.device), torch.randn_like(x0)
        given = Perturbation(drop, shift, self.request.dropout, probes="fresh")
        self.loss(self.denoiser, x0, labels, sigma, eps, given, 0.5)["loss"].mean().backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1 - DECAY)


class Beside(Callback):
    """Times blocks of a run's steps and blocks of a bare loop in turn.

    Args:
        file: JSON: seconds of a step in each block, `run` and `bare`.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self.taken: dict[str, list[float]] = {"run": [], "bare": []}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Diffusion)
        self.bare = Bare(pl_module)
        self.since = time.process_time()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % BLOCK:
            return
        start = time.process_time()
        self.taken["run"].append((start - self.since) / BLOCK)
        for _ in range(BLOCK):
            self.bare.step()
        self.since = time.process_time()
        self.taken["bare"].append((self.since - start) / BLOCK)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        write_json(self.file, {name: taken[WARM:] for name, taken in self.taken.items()})


def measure(trainings: Sequence[Sequence[str]], dataset: str, blocks: int, say: Callable[[Row], None]) -> list[Row]:
    """A row for each training; `say` is given each at once."""
    rows = []
    for words in trainings:
        rows.append(measure_one([f"experiment={dataset}", *words], blocks))
        say(rows[-1])
    return rows


def measure_one(words: Sequence[str], blocks: int) -> Row:
    """One row."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "beside.json"
        more = ["+callbacks.beside._target_=experiments.speed.overhead.Beside", f"+callbacks.beside.file={file}"]
        more += [f"run_dir={folder}", "evaluate=null", "trainer.limit_val_batches=0"]
        train([*words, *more, f"trainer.max_steps={BLOCK * (WARM + blocks)}"], said=words)
        found = json.loads(file.read_text())
    run, bare = found["run"], found["bare"]
    times = {"run": milliseconds(run), "bare": milliseconds(bare), "ratio": ratio(run, bare)}
    return {"words": " ".join(words), **times}
