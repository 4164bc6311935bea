"""One training run: instantiate, fit, evaluate. The command line around it is `flowdiff.train`."""

import math
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from omegaconf import DictConfig, OmegaConf

from flowdiff import autoencoder, below, boards, checkpoint, generate, processes, seal, trusted
from flowdiff import words as words_of
from flowdiff.augment import Augmentation
from flowdiff.callbacks import EMA, Checkpoints
from flowdiff.compilation import check_compiler
from flowdiff.data.base import ImageData, loaded
from flowdiff.data.latents import seen_through
from flowdiff.denoisers import Denoiser, ScoreFlow
from flowdiff.embeddings import Conditioning
from flowdiff.errors import ConfigError, FlowdiffError, NonFiniteError
from flowdiff.evaluation import evaluate_run, report_autoencoder
from flowdiff.facts import about, one_line
from flowdiff.files import made
from flowdiff.flows.actnorm import initialising, wants_data
from flowdiff.interrupts import Interrupted, Interrupts
from flowdiff.loggers import TensorBoardLogger
from flowdiff.losses import Mixture, Noised
from flowdiff.module import Diffusion, check
from flowdiff.noise import NoiseDistribution
from flowdiff.optimisation import Optimised
from flowdiff.swept import swept_keys


def train(cfg: DictConfig, words: list[str] | None = None) -> dict[str, Any]:
    """Train one model and evaluate it.

    Args:
        cfg: composed from conf/config.yaml. ``run_dir`` must be set where Hydra doesn't run the job.
        words: the command line that led to ``cfg``; None: that of Hydra's job, if there is one.

    Returns:
        ``checkpoint`` (the one evaluated), ``last`` and ``run_dir`` (paths), ``step``, ``metrics`` (name to
        entry of metrics.json; empty without metrics) and ``validation`` (the last logged values).
    """
    source = plain(cfg, resolve=False)
    config = plain(cfg)
    words = given_overrides() if words is None else words
    check(config)
    check_devices(config["trainer"])
    if config.get("compile"):
        check_compiler("cuda" if config["trainer"].get("accelerator") in ("gpu", "cuda") else "cpu")
    run_dir = made(config["run_dir"], "run_dir")
    below.check(config, run_dir)
    if not config.get("ckpt_path") and says_outside(config):
        seal.own_key(make=True)  # what the user has said of paths is followed later, by this user

    seed(config["seed"])
    data = seen_through(make(config["first_stage"]), loaded(make(config["dataset"])))
    build = build_autoencoder if config.get("autoencoder") else build_diffusion
    module = build(config, data, words, source)
    callbacks = [make(c) for c in (config.get("callbacks") or {}).values() if c]
    callbacks.sort(key=lambda callback: isinstance(callback, EMA))  # last: the others see the average it puts in
    loggers = [make(c) for c in (config.get("logger") or {}).values() if c]
    trainer = build_trainer(config["trainer"], callbacks, loggers, len(data.train_dataloader()))
    processes.check(trainer)
    size, samples = sum(p.numel() for p in module.parameters()), len(data.images("train")[1])
    if trainer.is_global_zero:
        print(
            f"{config['name']}: {size:,} parameters, {samples:,} training samples; run folder {run_dir}",
            flush=True,
        )
        OmegaConf.save(OmegaConf.create(config), run_dir / "config.yaml")
        for logger in loggers:
            if isinstance(logger, TensorBoardLogger):
                boards.begin(logger.experiment, config, words, swept_keys(), data.extractor)
    fit(trainer, module, data, config)
    return finish(trainer, data, config, loggers)


def build_diffusion(config: dict[str, Any], data: ImageData, words: list[str], source: dict[str, Any]) -> Diffusion:
    """The denoiser, its loss and its noise; what an experiment chose and the model can't use is replaced."""
    with checkpoint.within(config.get("ckpt_path")):
        denoiser = checkpoint.build_denoiser(config, data.shape, data.num_classes)
    assert isinstance(denoiser, Denoiser)
    fall_back(config, denoiser, words)
    augmentation = build_augmentation(config, denoiser, data, words)
    generate.from_config(denoiser, config, images=data.levels is not None)  # refuses wrong sampling settings now
    denoiser.fit(data.statistics(denoiser.num_classes))  # 0 classes with conditioning=none
    entry = checkpoint.describe(config, data, source=source, overrides=words)
    module = Diffusion(denoiser, make(config["loss"]), make(config["noise"]), augmentation, config, entry)
    if not config.get("ckpt_path"):
        initialise(denoiser, data, module.noise)
    return module


def build_autoencoder(
    config: dict[str, Any], data: ImageData, words: list[str], source: dict[str, Any]
) -> autoencoder.Autoencoder:
    """The autoencoder of the data's images."""
    entry = checkpoint.describe(config, data, source=source, overrides=words)
    with checkpoint.within(config.get("ckpt_path")):
        return autoencoder.build(config, data, entry)


def initialise(denoiser: Denoiser, data: ImageData, noise: NoiseDistribution) -> None:
    """Show the actnorm layers of a new model the first training batch, noised as in training; other models nothing.

    There is no trainer yet, and no average of the weights: every process sees the same batch, and the average begins
    with what the batch has set.

    Args:
        denoiser: the model, fitted to the data's statistics.
        data, noise: the run's. The batch is noised by torch's global generator, which the run has seeded.
    """
    if not (isinstance(denoiser, ScoreFlow) and wants_data(denoiser)):
        return
    k, labels = next(iter(data.train_dataloader()))
    x0 = data.to_model(k)
    with torch.no_grad(), initialising(denoiser):
        batch = Noised(x0, labels if denoiser.num_classes else None, noise(len(x0)), torch.randn_like(x0), None)
        denoiser.log_prob(batch.x, batch.sigma, batch.labels)


def fit(trainer: Trainer, module: Optimised, data: LightningDataModule, config: Mapping[str, Any]) -> None:
    """Lightning's fit, with signals and non-finite losses turned into checkpoints and clear words."""
    saver = saver_of(trainer)
    path = config.get("ckpt_path")
    try:
        with Interrupts() as interrupts, processes.own(trainer, config):
            if saver is not None:
                saver.interrupts, interrupts.patient = interrupts, True
            trainer.fit(module, datamodule=data, ckpt_path=path, weights_only=True)
    except NonFiniteError as error:
        last = saver.last_path if saver is not None and saver.last_path.exists() else None
        kept = f"the last good checkpoint is {last}" if last else "no checkpoint was saved yet"
        advice = "a smaller lr, a longer warmup_steps or loss=likelihood may help"
        raise NonFiniteError(f"{error}: {kept}; {advice}") from error
    except Interrupted:
        if saver is not None and saver.last_path.exists() and trainer.is_global_zero:
            print(f"stopped at step {trainer.global_step}; to go on:")
            print(f"  python -m flowdiff.train ckpt_path={saver.last_path}", flush=True)
        raise
    except Exception as error:
        if path and not module.has_begun and not str(error).startswith("ckpt_path="):
            what = "the model is not the checkpoint's" if "state_dict for" in str(error) else "can't be gone on from"
            raise about(path, FlowdiffError(f"{what}: {one_line(error)}")) from error
        raise


def finish(trainer: Trainer, data: ImageData, config: Mapping[str, Any], loggers: list[Logger]) -> dict[str, Any]:
    """Evaluate the checkpoint chosen by ``evaluate``, write metrics.json and the end of TensorBoard's HParams row."""
    saver = saver_of(trainer)
    result: dict[str, Any] = {
        "run_dir": str(config["run_dir"]),
        "step": trainer.global_step,
        "metrics": {},
        "validation": {name: float(value) for name, value in trainer.callback_metrics.items()},
    }
    if saver is not None:
        best = saver.best_path if config["evaluate"] == "best" and saver.best_path.exists() else saver.last_path
        result |= {"checkpoint": str(best), "last": str(saver.last_path)}
    if not trainer.is_global_zero:
        return result
    if saver is not None and config["evaluate"] and config.get("autoencoder"):
        result["metrics"] = report_autoencoder(result["checkpoint"], config, Path(config["run_dir"]), data)
    elif saver is not None and config["evaluate"] and config.get("metrics"):
        result["metrics"] = evaluate_run(result["checkpoint"], config, Path(config["run_dir"]), data)
    final = {name: entry["value"] for name, entry in result["metrics"].items() if entry.get("value") is not None}
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            boards.end(logger.experiment, final, trainer.global_step)
            logger.finalize("success")
    return result


# -- building -------------------------------------------------------------------------------------------


def plain(cfg: DictConfig, resolve: bool = True) -> dict[str, Any]:
    """The resolved configuration: dicts, lists, numbers and strings."""
    config = OmegaConf.to_container(cfg, resolve=resolve, throw_on_missing=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


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


def make(config: Mapping[str, Any]) -> Any:
    """Build what a plain configuration describes."""
    return instantiate(dict(config), _convert_="all")


def says_outside(config: Mapping[str, Any]) -> bool:
    """Whether a configuration says something that is not followed from a stranger's file (`flowdiff.words`)."""
    usual = (os.environ.get("FLOWDIFF_DATA"), "data")
    found = {
        key: value
        for group in ("dataset", "first_stage", "metrics")
        for key, value in trusted.outside(group, config.get(group)).items()
        if value not in usual
    }
    trainer = config["trainer"]
    processes = any(trainer.get(name) not in words_of.USUAL for name in ("strategy", "devices", "num_nodes"))
    return bool(found) or processes or "wandb" in (config.get("logger") or {})


def build_trainer(config: Mapping[str, Any], callbacks: list[Callback], loggers: list[Logger], batches: int) -> Trainer:
    """Lightning's Trainer. A budget shorter than the distance between validations ends with one all the same.

    Args:
        config: the group trainer.
        callbacks, loggers: in their order.
        batches: in an epoch.
    """
    settings = dict(config)
    every = settings.get("val_check_interval")
    if isinstance(every, int) and settings.get("check_val_every_n_epoch") is None:
        limit = settings.get("overfit_batches") or settings.get("limit_train_batches") or 1.0
        batches = max(1, min(batches, limit) if isinstance(limit, int) else int(batches * limit))
        accumulate = int(settings.get("accumulate_grad_batches") or 1)
        epochs, steps = divmod(settings["max_steps"], math.ceil(batches / accumulate))
        settings["val_check_interval"] = min(every, epochs * batches + steps * accumulate)
    plugins: list[Any] = [checkpoint.AtomicCheckpointIO()]
    if SLURMEnvironment.detect():  # `flowdiff.cluster` queues jobs again
        plugins.append(SLURMEnvironment(auto_requeue=False))
    return instantiate(
        settings,
        callbacks=callbacks,
        logger=loggers or False,
        plugins=plugins,
        enable_checkpointing=any(isinstance(c, Checkpoints) for c in callbacks),
        _convert_="all",
    )


def check_devices(config: Mapping[str, Any]) -> None:
    """A GPU that isn't there is said so before anything else happens."""
    kind, devices = config.get("accelerator"), config.get("devices")
    if kind in ("gpu", "cuda") and not torch.cuda.is_available():
        if kind == "gpu" and torch.backends.mps.is_available():
            return
        raise ConfigError("trainer.accelerator", kind, "no GPU was found here; use trainer=cpu")
    if kind in ("gpu", "cuda") and isinstance(devices, int) and devices > torch.cuda.device_count():
        raise ConfigError("trainer.devices", devices, f"{torch.cuda.device_count()} GPU(s) were found here")


def fall_back(config: dict[str, Any], denoiser: Denoiser, words: list[str]) -> None:
    """An experiment may choose a loss or a sampler that another denoiser can't use (denoiser=unet).

    Where the command line asked for neither, the ones that every denoiser has take their place. A flow that is not
    onto (leak 0) keeps a loss=likelihood, which then refuses it.
    """
    asked = {word.split("=")[0].lstrip("+") for word in words}
    loss = make(config["loss"])
    unusable = loss.needs_likelihood and not denoiser.normalized
    if "loss" not in asked and unusable and (isinstance(loss, Mixture) or not denoiser.has_density):
        config["loss"] = {"_target_": "flowdiff.losses.Denoising"}
        print("this model has no likelihood of x: training with loss=denoising", flush=True)
    sampler = make(config["sampler"])
    lacking = sampler.lacks(denoiser)
    if "sampler" not in asked and lacking is not None:
        steps = sampler.num_steps if "num_steps" in asked else 64
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
        config["augment"] = {"_target_": "flowdiff.augment.Augmentation", "_partial_": True}
        print(f"augmentation needs {lacking}: training with augment=none", flush=True)
        return Augmentation(context_dim)
    return augmentation


def given_overrides() -> list[str]:
    """What was typed on the command line, as far as Hydra runs this job."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
