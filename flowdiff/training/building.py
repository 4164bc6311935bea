"""What a run is built of: its devices and budget, Lightning's Trainer, and what takes the place of what doesn't fit."""

import math
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment

from flowdiff.data.base import ImageData
from flowdiff.denoisers.base import Denoiser
from flowdiff.errors import ConfigError
from flowdiff.model.construction import build
from flowdiff.model.requests import spell_out
from flowdiff.model.vocabulary import files_of
from flowdiff.nn.embeddings import Conditioning
from flowdiff.objectives.augmentation import Augmentation
from flowdiff.objectives.losses import Loss, Mixture
from flowdiff.options import Recipe, snake_case
from flowdiff.runs.words import is_typed, read_word, values_of
from flowdiff.training.callbacks.checkpoints import Checkpoints
from flowdiff.training.checkpoint_files import AtomicCheckpointIO
from flowdiff.training.request import TrainerOptions, TrainRequest
from flowdiff.training.strategies import find_strategy
from flowdiff.training.tensorboard import missing_parts


def find_root(dataset: Any) -> Any:
    """A node of a dataset with an absolute `root`, by which the data are found from any folder."""
    root = dataset.get("root") if isinstance(dataset, Mapping) else None
    return {**dataset, "root": os.path.abspath(Path(root).expanduser())} if isinstance(root, str) and root else dataset


def keep_environment(source: Mapping[str, Any], dataset: Mapping[str, Any]) -> dict[str, Any]:
    """A dataset's node before interpolation, with the root that was found.

    An environment variable that names the root stays, so that a run goes on where the data are by then.
    """
    said, root = source.get("root"), dataset.get("root")
    kept = isinstance(said, str) and "${" in said and bool(os.environ.get("FLOWDIFF_DATA"))
    return dict(source) if kept or root is None else {**source, "root": root}


def find_checkpoints(trainer: Trainer) -> Checkpoints | None:
    """The callback that writes the checkpoints, if there is one."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((c for c in callbacks if isinstance(c, Checkpoints)), None)


def seed_all(number: int) -> None:
    """Seed what initial weights are drawn from.

    Lightning's `seed_everything` would also leave the seed in the environment, for the next job of a sweep.
    """
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)


def build_trainer(
    options: TrainerOptions, callbacks: list[Callback], loggers: list[Logger], batches: int, files: AtomicCheckpointIO
) -> Trainer:
    """Lightning's Trainer. A budget shorter than the distance between validations ends with one all the same.

    Args:
        options: conf/trainer.
        callbacks, loggers: in their order.
        batches: in an epoch.
        files: writes and reads the checkpoints.
    """
    every, let_through = options.val_check_interval, count_batches(options, batches)
    if isinstance(every, int) and options.check_val_every_n_epoch is None:
        epochs, steps = divmod(options.max_steps, math.ceil(let_through / options.accumulate_grad_batches))
        every = min(every, epochs * let_through + steps * options.accumulate_grad_batches)
    elif isinstance(every, int) and every > let_through:
        every = 1.0  # where validations are counted in epochs, an epoch's end
    strategy = find_strategy(options.strategy)
    made_here: dict[str, Any] = {} if strategy is None else {"strategy": strategy}
    skipped = {"matmul_precision", "cuda_graph", *made_here}
    settings = {key: value for key, value in spell_out(options).items() if key not in skipped}
    plugins: list[Any] = [files]
    if SLURMEnvironment.detect():  # `runs.slurm` queues jobs again
        plugins.append(SLURMEnvironment(auto_requeue=False))
    return build(
        Recipe[Trainer]("trainer", settings | {"val_check_interval": every}),
        callbacks=callbacks,
        logger=loggers or False,
        plugins=plugins,
        enable_checkpointing=any(isinstance(c, Checkpoints) for c in callbacks),
        **made_here,
    )


def count_batches(options: TrainerOptions, batches: int) -> int:
    """As many of an epoch's `batches` as the trainer lets through."""
    limit = options.overfit_batches or options.limit_train_batches
    return max(1, min(batches, limit) if isinstance(limit, int) else int(batches * limit))


def set_budget(request: TrainRequest, words: Sequence[str], batches: int) -> None:
    """Count `trainer.max_epochs` in steps, if it is given: in place of max_steps, or the smaller if both were typed.

    Args:
        request: `trainer.max_steps` and what follows it (`decay_steps`) are set.
        words: the command line.
        batches: in an epoch.
    """
    trainer = request.trainer
    epochs, given = trainer.max_epochs, trainer.max_steps
    if epochs is None:
        return
    steps = epochs * math.ceil(count_batches(trainer, batches) / trainer.accumulate_grad_batches)
    both = is_typed("trainer.max_steps", words)
    budget = min(steps, given) if both else steps
    if request.decay_steps == given and not is_typed("decay_steps", words):
        request.decay_steps = budget
    request.trainer = replace(trainer, max_steps=budget, max_epochs=None)
    beside = f" and trainer.max_steps={given}, the smaller" if both else ""
    print(f"training for {budget} steps: trainer.max_epochs={epochs}{beside}", flush=True)


def check_devices(options: TrainerOptions) -> None:
    """A GPU that isn't there is said so before anything else happens."""
    kind, devices = options.accelerator, options.devices
    if kind in ("gpu", "cuda") and not torch.cuda.is_available():
        if kind == "gpu" and torch.backends.mps.is_available():
            return
        raise ConfigError("trainer.accelerator", kind, "no GPU was found here; use trainer=cpu")
    if kind == "cpu" and not isinstance(devices, int | str):
        raise ConfigError("trainer.devices", devices, "must be a number of processes on the CPU")
    if kind in ("gpu", "cuda") and isinstance(devices, int) and devices > torch.cuda.device_count():
        raise ConfigError("trainer.devices", devices, f"{torch.cuda.device_count()} GPU(s) were found here")


def fall_back(request: TrainRequest, denoiser: Denoiser, words: Sequence[str]) -> None:
    """An experiment may choose a loss or a sampler that another denoiser can't use (denoiser=unet).

    Where the command line asked for neither, the ones that every denoiser has take their place. A flow that is not
    onto (leak 0) keeps a loss=likelihood, which then refuses it.

    Raises:
        ConfigError: the command line asked for a base that the model can't use.
    """
    base = values_of(words).get("base", "normal")
    if base != "normal" and any(isinstance(part, Conditioning) and part.joint for part in denoiser.modules()):
        raise ConfigError("base", base, "conditioning=concat needs base=normal")
    loss = build(request.loss)
    unusable = loss.needs_likelihood and not denoiser.normalized
    if unusable and not is_typed("loss", words) and (isinstance(loss, Mixture) or not denoiser.has_density):
        kept = {} if request.weighting is None else {"weighting": request.weighting.content}
        request.loss = Recipe("loss", {"_target_": "flowdiff.objectives.Denoising", **kept})
        print("this model has no likelihood of x: training with loss=denoising", flush=True)
    sampler = build(request.sampler)
    lacking = sampler.lacks(denoiser)
    if lacking is not None and not is_typed("sampler", words):
        steps = sampler.num_steps if is_typed("num_steps", words) else 64
        request.sampler = Recipe("sampler", {"_target_": "flowdiff.samplers.Ancestral", "num_steps": steps})
        print(f"this model has no {lacking}: sampling with sampler=ancestral num_steps={steps}", flush=True)


def build_loss(request: TrainRequest) -> Loss:
    """The training objective.

    Raises:
        ConfigError: it doesn't take the weighting that was chosen.
    """
    loss = build(request.loss)
    if request.weighting is not None and loss.weighting is None:
        name = snake_case(type(loss).__name__)
        allowed = f"loss={name} doesn't take the weighting: choose weighting=null, or loss=mixture with all its keys"
        raise ConfigError("loss.weighting", None, allowed)
    return loss


def build_augmentation(
    request: TrainRequest, denoiser: Denoiser, data: ImageData, words: Sequence[str]
) -> Augmentation:
    """What is done to the training images: nothing where an experiment's own choice doesn't suit the data or model.

    Raises:
        ConfigError: the command line asked for it.
    """
    context_dim = next((m.dim for m in denoiser.modules() if isinstance(m, Conditioning)), 0)
    augmentation = build(request.augment)(context_dim=context_dim)
    if not augmentation.numbers or (data.levels is not None and context_dim):
        return augmentation
    lacking = "images" if data.levels is None else "a model with an embedding of σ"
    if is_typed("augment", words):
        raise ConfigError("augment", values_of(words)["augment"], f"needs {lacking}: choose augment=none")
    request.augment = Recipe("augment", {"_target_": "flowdiff.objectives.Augmentation", "_partial_": True})
    print(f"augmentation needs {lacking}: training with augment=none", flush=True)
    return Augmentation(context_dim)


def name_recipe(choices: Mapping[str, str]) -> str:
    """Which experiment's settings are in force, and which one is made for the data, if that is another one."""
    experiment, dataset = choices.get("experiment"), choices.get("dataset")
    own = dataset in files_of("experiment") and dataset != experiment
    of_others = experiment is None or experiment in files_of("dataset")
    better = f"; made for these data is experiment={dataset}" if own and of_others else ""
    return f"recipe: experiment={experiment or 'null'}{better}"


def list_unused(config: Mapping[str, Any], words: Iterable[str]) -> list[str]:
    """A line for each word that changes a part which the model doesn't have, as flow.n_flows=3 with denoiser=mlp.

    Args:
        config: resolved, plain values.
        words: the command line's.
    """
    model = "autoencoder" if config.get("autoencoder") else "denoiser"
    missing = missing_parts(config, model)
    name = str(config[model]["_target_"]).rpartition(".")[2]
    parts = [(word, read_word(word).key.partition(".")[0]) for word in words]
    return [f"{word}: not used, {name} has no {part}" for word, part in parts if part in missing]
