"""What a run is built of: its plain configuration, budget, devices, and what takes the place of what doesn't fit."""

import math
import os
import random
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flowdiff.commands import stored_words
from flowdiff.data.base import ImageData
from flowdiff.denoisers.base import Denoiser
from flowdiff.errors import ConfigError, one_line
from flowdiff.model import safe_construction
from flowdiff.model.configuration import leaves
from flowdiff.model.construction import make
from flowdiff.model.vocabulary import config_dir
from flowdiff.nn.embeddings import Conditioning
from flowdiff.objectives.augmentation import Augmentation
from flowdiff.objectives.losses import Mixture
from flowdiff.runs.words import is_typed
from flowdiff.training.callbacks.checkpoints import Checkpoints
from flowdiff.training.checkpoint_files import AtomicCheckpointIO
from flowdiff.training.tensorboard import missing_parts


def plain(cfg: DictConfig, resolve: bool = True) -> dict[str, Any]:
    """The resolved configuration: dicts, lists, numbers and strings."""
    try:
        config = OmegaConf.to_container(cfg, resolve=resolve, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = str(error.full_key or "configuration")
        typed = OmegaConf.to_container(cfg, resolve=False)
        raise ConfigError(key, dict(leaves(typed)).get(key), one_line(error).split(" full_key:")[0]) from error
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def located(dataset: dict[str, Any], source: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The dataset's configuration, and the same before interpolation, with an absolute `root`.

    The data are then found from any folder. An environment variable that names the root is kept in the source, so that
    a run goes on where the data are by then.
    """
    root, said = dataset.get("root"), source.get("root")
    if not isinstance(root, str) or not root:
        return dataset, source
    path = os.path.abspath(Path(root).expanduser())
    kept = isinstance(said, str) and "${" in said and bool(os.environ.get("FLOWDIFF_DATA"))
    return dataset | {"root": path}, source if kept else source | {"root": path}


def saver_of(trainer: Trainer) -> Checkpoints | None:
    """The callback that writes the checkpoints, if there is one."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((c for c in callbacks if isinstance(c, Checkpoints)), None)


def seed(number: int) -> None:
    """Seed what initial weights are drawn from.

    Lightning's `seed_everything` would also leave the seed in the environment, for the next job of a sweep.
    """
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)


def says_outside(config: Mapping[str, Any]) -> bool:
    """Whether a configuration says something that is not followed from a stranger's file (`commands.stored_words`)."""
    usual = (os.environ.get("FLOWDIFF_DATA"), "data")
    found = {
        key: value
        for group in ("dataset", "first_stage", "metrics")
        for key, value in safe_construction.outside(group, config.get(group)).items()
        if value not in usual
    }
    trainer = config["trainer"]
    processes = any(trainer.get(name) not in stored_words.USUAL for name in ("strategy", "devices", "num_nodes"))
    return bool(found) or processes or bool(config.get("compile")) or "wandb" in (config.get("logger") or {})


def build_trainer(config: Mapping[str, Any], callbacks: list[Callback], loggers: list[Logger], batches: int) -> Trainer:
    """Lightning's Trainer. A budget shorter than the distance between validations ends with one all the same.

    Args:
        config: the group trainer.
        callbacks, loggers: in their order.
        batches: in an epoch.
    """
    settings = {key: value for key, value in config.items() if key != "matmul_precision"}
    every = settings.get("val_check_interval")
    if isinstance(every, int) and settings.get("check_val_every_n_epoch") is None:
        batches, accumulate = batches_of_an_epoch(settings, batches), settings.get("accumulate_grad_batches", 1)
        epochs, steps = divmod(settings["max_steps"], math.ceil(batches / accumulate))
        settings["val_check_interval"] = min(every, epochs * batches + steps * accumulate)
    elif isinstance(every, int) and every > batches_of_an_epoch(settings, batches):
        settings["val_check_interval"] = 1.0  # where validations are counted in epochs, an epoch's end
    plugins: list[Any] = [AtomicCheckpointIO()]
    if SLURMEnvironment.detect():  # `runs.slurm` queues jobs again
        plugins.append(SLURMEnvironment(auto_requeue=False))
    return instantiate(
        settings,
        callbacks=callbacks,
        logger=loggers or False,
        plugins=plugins,
        enable_checkpointing=any(isinstance(c, Checkpoints) for c in callbacks),
        _convert_="all",
    )


def batches_of_an_epoch(config: Mapping[str, Any], batches: int) -> int:
    """As many of an epoch's `batches` as the group trainer lets through."""
    limit = config.get("overfit_batches") or config.get("limit_train_batches", 1.0)
    return max(1, min(batches, limit) if isinstance(limit, int) else int(batches * limit))


def set_budget(config: dict[str, Any], words: list[str], batches: int) -> None:
    """Count `trainer.max_epochs` in steps, if it is given: in place of max_steps, or the smaller if both were typed.

    Args:
        config: resolved, plain values; `trainer.max_steps` and what follows it (`decay_steps`) are set.
        words: the command line.
        batches: in an epoch.
    """
    trainer = config["trainer"]
    epochs, given = trainer["max_epochs"], trainer["max_steps"]
    if epochs is None:
        return
    steps = epochs * math.ceil(batches_of_an_epoch(trainer, batches) / trainer["accumulate_grad_batches"])
    both = is_typed("trainer.max_steps", words)
    budget = min(steps, given) if both else steps
    if config["decay_steps"] == given and not is_typed("decay_steps", words):
        config["decay_steps"] = budget
    trainer |= {"max_steps": budget, "max_epochs": None}
    beside = f" and trainer.max_steps={given}, the smaller" if both else ""
    print(f"training for {budget} steps: trainer.max_epochs={epochs}{beside}", flush=True)


def check_devices(config: Mapping[str, Any]) -> None:
    """A GPU that isn't there is said so before anything else happens."""
    kind, devices = config.get("accelerator"), config.get("devices")
    if kind in ("gpu", "cuda") and not torch.cuda.is_available():
        if kind == "gpu" and torch.backends.mps.is_available():
            return
        raise ConfigError("trainer.accelerator", kind, "no GPU was found here; use trainer=cpu")
    if kind == "cpu" and not isinstance(devices, int | str):
        raise ConfigError("trainer.devices", devices, "must be a number of processes on the CPU")
    if kind in ("gpu", "cuda") and isinstance(devices, int) and devices > torch.cuda.device_count():
        raise ConfigError("trainer.devices", devices, f"{torch.cuda.device_count()} GPU(s) were found here")


def fall_back(config: dict[str, Any], denoiser: Denoiser, words: list[str]) -> None:
    """An experiment may choose a loss or a sampler that another denoiser can't use (denoiser=unet).

    Where the command line asked for neither, the ones that every denoiser has take their place. A flow that is not
    onto (leak 0) keeps a loss=likelihood, which then refuses it.
    """
    loss = make(config["loss"], "loss")
    unusable = loss.needs_likelihood and not denoiser.normalized
    if unusable and not is_typed("loss", words) and (isinstance(loss, Mixture) or not denoiser.has_density):
        config["loss"] = {"_target_": "flowdiff.objectives.Denoising"}
        print("this model has no likelihood of x: training with loss=denoising", flush=True)
    sampler = make(config["sampler"], "sampler")
    lacking = sampler.lacks(denoiser)
    if lacking is not None and not is_typed("sampler", words):
        steps = sampler.num_steps if is_typed("num_steps", words) else 64
        config["sampler"] = {"_target_": "flowdiff.samplers.Ancestral", "num_steps": steps}
        print(f"this model has no {lacking}: sampling with sampler=ancestral num_steps={steps}", flush=True)


def build_augmentation(config: dict[str, Any], denoiser: Denoiser, data: ImageData, words: list[str]) -> Augmentation:
    """What is done to the training images: nothing where an experiment's own choice doesn't suit the data or model.

    Raises:
        ConfigError: the command line asked for it.
    """
    context_dim = next((m.dim for m in denoiser.modules() if isinstance(m, Conditioning)), 0)
    augmentation = make(config["augment"])(context_dim=context_dim)
    assert isinstance(augmentation, Augmentation)
    if augmentation.numbers and (data.levels is None or not context_dim):
        lacking = "images" if data.levels is None else "a model with an embedding of σ"
        for word in words:
            if word.split("=")[0].lstrip("+") == "augment":
                raise ConfigError("augment", word.split("=")[1], f"needs {lacking}: choose augment=none")
        config["augment"] = {"_target_": "flowdiff.objectives.Augmentation", "_partial_": True}
        print(f"augmentation needs {lacking}: training with augment=none", flush=True)
        return Augmentation(context_dim)
    return augmentation


def recipe(choices: Mapping[str, Any]) -> str:
    """Which experiment's settings are in force, and which one is made for the data, if that is another one."""
    experiment, dataset = choices.get("experiment"), choices.get("dataset")
    own = (config_dir() / "experiment" / f"{dataset}.yaml").is_file() and dataset != experiment
    of_others = experiment is None or (config_dir() / "dataset" / f"{experiment}.yaml").is_file()
    better = f"; made for these data is experiment={dataset}" if own and of_others else ""
    return f"recipe: experiment={experiment or 'null'}{better}"


def unused(config: Mapping[str, Any], words: Iterable[str]) -> list[str]:
    """A line for each word that changes a part which the model doesn't have, as flow.n_flows=3 with denoiser=mlp.

    Args:
        config: resolved, plain values.
        words: the command line's.
    """
    model = "autoencoder" if config.get("autoencoder") else "denoiser"
    missing = missing_parts(config, model)
    name = str(config[model]["_target_"]).rpartition(".")[2]
    parts = [(word, re.split(r"[.=@]", word.lstrip("+~"), maxsplit=1)[0]) for word in words]
    return [f"{word}: not used, {name} has no {part}" for word, part in parts if part in missing]
