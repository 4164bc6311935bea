"""One training run: instantiate, fit, evaluate. The command line around it is `flowdiff.train`."""

import contextlib
import math
import os
import random
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flowdiff import (
    autoencoder,
    below,
    boards,
    checkpoint,
    cli,
    generate,
    going_on,
    lock,
    mistakes,
    processes,
    seal,
    stored_words,
    trusted,
)
from flowdiff.augment import Augmentation
from flowdiff.callbacks import EMA, Checkpoints
from flowdiff.compilation import check_compiler
from flowdiff.data.base import ImageData, loaded
from flowdiff.data.folders import listed
from flowdiff.data.latents import seen_through
from flowdiff.denoisers import Denoiser, ScoreFlow
from flowdiff.embeddings import Conditioning
from flowdiff.errors import ConfigError, FlowdiffError, NonFiniteError
from flowdiff.evaluation import build_metrics, evaluate_run, final_columns, report_autoencoder
from flowdiff.facts import about, one_line
from flowdiff.files import made, noticing_removal, there
from flowdiff.flows.actnorm import initialising, wants_data
from flowdiff.interrupts import Interrupted, Interrupts
from flowdiff.loggers import CSVLogger, TensorBoardLogger
from flowdiff.losses import Mixture, Noised
from flowdiff.module import Diffusion
from flowdiff.noise import NoiseDistribution
from flowdiff.optimisation import Optimised
from flowdiff.options import leaves
from flowdiff.precondition import Gaussianised
from flowdiff.requests import TrainRequest, check_request
from flowdiff.swept import swept_keys
from flowdiff.words import command, is_typed, override, typed_words


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
    check_request(TrainRequest, source)  # first: what is wrong here is what an interpolation would stumble over
    config = plain(cfg)
    words = typed_words() if words is None else words
    check_request(TrainRequest, config)
    with matmul_precision(config["trainer"].get("matmul_precision")):
        return train_plain(config, words, source)


def train_plain(config: dict[str, Any], words: list[str], source: dict[str, Any]) -> dict[str, Any]:
    """`train` of a resolved configuration; ``source`` is the one before its resolution, for the checkpoint."""
    check_devices(config["trainer"])
    if config.get("compile"):
        check_compiler("cuda" if config["trainer"].get("accelerator") in ("gpu", "cuda") else "cpu")
    step, classes = -1, None  # the last one behind the run, and the names of its classes
    if config.get("ckpt_path"):
        content = checkpoint.read(config["ckpt_path"])  # says what is wrong with it, if anything is
        going_on.check_left(content, config, words)
        step, classes = int(content["global_step"]), content["flowdiff"].get("class_names")
        del content
    run_dir = made(config["run_dir"], "run_dir")
    below.check(config, run_dir)
    if not config.get("ckpt_path") and says_outside(config):
        seal.own_key(make=True)  # what the user has said of paths is followed later, by this user
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock.occupied(run_dir))
        except lock.OtherJob as error:
            raise FlowdiffError(f"run_dir={error}") from error
        stack.enter_context(noticing_removal(run_dir))
        return _train(config, words, source, run_dir, step, classes)


def _train(
    config: dict[str, Any],
    words: list[str],
    source: dict[str, Any],
    run_dir: Path,
    step: int,
    classes: list[str] | None,
) -> dict[str, Any]:
    seed(config["seed"])
    config["dataset"], source["dataset"] = located(config["dataset"], source["dataset"])
    data = seen_through(make(config["first_stage"]), loaded(make(config["dataset"])))
    set_budget(config, words, len(data.train_dataloader()))
    build = build_autoencoder if config.get("autoencoder") else build_diffusion
    module = build(config, data, words, source)
    build_metrics(config.get("metrics") or {}, typed=True)  # refuses wrong settings now, not after the training
    callbacks = [make(c, f"callbacks.{k}", Callback) for k, c in (config.get("callbacks") or {}).items() if c]
    callbacks.sort(key=lambda callback: isinstance(callback, EMA))  # last: the others see the average it puts in
    loggers = [make(c, f"logger.{k}", Logger) for k, c in (config.get("logger") or {}).items() if c]
    for logger in loggers:
        if isinstance(logger, CSVLogger | TensorBoardLogger):
            logger.last_step = step  # what an earlier process logged after it is logged again
    trainer = build_trainer(config["trainer"], callbacks, loggers, len(data.train_dataloader()))
    processes.check(trainer)
    boarded = any(isinstance(logger, TensorBoardLogger) for logger in loggers)
    shown = columns(config, trainer, module, data) if boarded else []
    size, samples = sum(p.numel() for p in module.parameters()), len(data.images("train")[1])
    if trainer.is_global_zero:
        if HydraConfig.initialized() and not config["ckpt_path"]:
            print(recipe(HydraConfig.get().runtime.choices), flush=True)
        print(
            f"{config['name']}: {size:,} parameters, {samples:,} training samples; run folder {run_dir}",
            *data.notes,
            sep="\n",
            flush=True,
        )
        if classes is not None and classes != data.class_names:
            was, now = listed(classes) or "none", listed(data.class_names) or "none"
            print(f"warning: the checkpoint's classes are {was}, those of the data {now}", flush=True)
        OmegaConf.save(OmegaConf.create(config), run_dir / "config.yaml")
        for logger in loggers:
            if isinstance(logger, TensorBoardLogger):
                boards.begin(logger.experiment, config, words, swept_keys(), shown)
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
    if any(isinstance(part, Gaussianised) and not part.bend for part in denoiser.modules()):
        print("precondition=gaussianised would begin worse than standardized on these data: used as that", flush=True)
    entry = describe(config, data, source, words)
    module = Diffusion(denoiser, make(config["loss"]), make(config["noise"]), augmentation, config, entry)
    if not config.get("ckpt_path"):
        initialise(denoiser, data, module.noise)
    return module


def build_autoencoder(
    config: dict[str, Any], data: ImageData, words: list[str], source: dict[str, Any]
) -> autoencoder.Autoencoder:
    """The autoencoder of the data's images."""
    entry = describe(config, data, source, words)
    with checkpoint.within(config.get("ckpt_path")):
        return autoencoder.build(config, data, entry)


def describe(config: dict[str, Any], data: ImageData, source: dict[str, Any], words: list[str]) -> dict[str, Any]:
    """The entry ``"flowdiff"`` of the run's checkpoints, with the folder that ``--config-dir`` names."""
    entry = checkpoint.describe(config, data, source=source, overrides=words)
    return entry | {"config_dir": going_on.config_dir()}


def columns(config: Mapping[str, Any], trainer: Trainer, module: Optimised, data: ImageData) -> list[str]:
    """The scalars that the run will write and that are columns of TensorBoard's HParams: of validation, and final."""
    found = module.validated(data) if trainer.limit_val_batches else []
    if config["evaluate"] and saver_of(trainer) is not None:
        final = autoencoder.columns(data) if isinstance(module, autoencoder.Autoencoder) else []
        if isinstance(module, Diffusion) and config.get("metrics"):
            final = final_columns(config, module.denoiser, data)
        found += [f"final/{name}" for name in final]
    return found


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
            if interrupts.received is not None:  # after the last step
                raise Interrupted(interrupts.received)
    except NonFiniteError as error:
        last = saver.last_path if saver is not None and saver.last_path.exists() else None
        kept = f"the last good checkpoint is {last}" if last else "no checkpoint was saved yet"
        advice = "a smaller lr, a longer warmup_steps or loss=likelihood may help"
        raise NonFiniteError(f"{error}: {kept}; {advice}") from error
    except Interrupted as stop:
        if trainer.is_global_zero and not Interrupts.in_worker:
            stop.say(how_to_go_on(trainer.global_step, saver))
        raise
    except Exception as error:
        if path and not module.has_begun and not str(error).startswith("ckpt_path="):
            if "state_dict for" in str(error):
                changed = going_on.changes_of_model(checkpoint.read(path)["flowdiff"]["config"], config)
                raise about(path, FlowdiffError(f"the model is not the checkpoint's: {changed}")) from error
            raise about(path, FlowdiffError(f"can't be gone on from: {one_line(error)}")) from error
        raise


def how_to_go_on(step: int, saver: Checkpoints | None) -> str:
    """What a run says that a signal has stopped at a step."""
    if saver is None or not saver.last_path.exists():
        return f"stopped at step {step}; no checkpoint was saved"
    since = "" if saver.saved_step == step else f" from step {saver.saved_step}"
    given = going_on.config_dir()
    options = [shlex.quote(f"--config-dir={given}")] if given else []
    again = command("train", *options, override("ckpt_path", saver.last_path.absolute()))
    return f"stopped at step {step}; to go on{since}:\n  {again}"


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
    if saver is not None:
        there(config["run_dir"])
        if not best.is_file():
            raise FlowdiffError(f"{best} is not there: no step was trained, or the file was removed")
    try:
        if saver is not None and config["evaluate"] and config.get("autoencoder"):
            result["metrics"] = report_autoencoder(result["checkpoint"], config, Path(config["run_dir"]), data)
        elif saver is not None and config["evaluate"] and config.get("metrics"):
            result["metrics"] = evaluate_run(result["checkpoint"], config, Path(config["run_dir"]), data)
    except Interrupted as stop:
        if not Interrupts.in_worker:
            measure = command("evaluate", override("ckpt_path", best.absolute()))
            stop.say(f"stopped at step {trainer.global_step}, before the last metrics; to measure:\n  {measure}")
        raise
    final = {name: entry["value"] for name, entry in result["metrics"].items() if entry.get("value") is not None}
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            boards.end(logger.experiment, final, trainer.global_step)
            logger.finalize("success")
    return result


@contextmanager
def matmul_precision(chosen: str | None) -> Iterator[None]:
    """Within it, that of float32 matrix products is ``trainer.matmul_precision``; then what it was, for the next job.

    Args:
        chosen: "highest", "high" (TF32 on GPUs that have it) or "medium" (bf16); None: torch's own, which is highest.
    """
    before = torch.get_float32_matmul_precision()
    if chosen is not None:
        torch.set_float32_matmul_precision(chosen)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# -- building -------------------------------------------------------------------------------------------


def plain(cfg: DictConfig, resolve: bool = True) -> dict[str, Any]:
    """The resolved configuration: dicts, lists, numbers and strings."""
    try:
        config = OmegaConf.to_container(cfg, resolve=resolve, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = str(error.full_key or "configuration")
        typed = OmegaConf.to_container(cfg, resolve=False)
        raise ConfigError(key, dict(leaves(typed)).get(key), mistakes.one_line(error).split(" full_key:")[0]) from error
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def located(dataset: dict[str, Any], source: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The dataset's configuration, and the same before interpolation, with an absolute ``root``.

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


def make(config: Mapping[str, Any], key: str = "", kind: type = object) -> Any:
    """Build what a plain configuration describes.

    Raises:
        FlowdiffError: with ``key`` in front, what it names can't be built of its values, or is no ``kind``.
    """
    try:
        built = instantiate(dict(config), _convert_="all")
    except InstantiationException as error:
        raise generate.user_error(key, error) from error
    if not isinstance(built, kind):
        raise ConfigError(f"{key}._target_", config["_target_"], f"must be a {kind.__name__}")
    return built


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
    processes = any(trainer.get(name) not in stored_words.USUAL for name in ("strategy", "devices", "num_nodes"))
    return bool(found) or processes or "wandb" in (config.get("logger") or {})


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


def batches_of_an_epoch(config: Mapping[str, Any], batches: int) -> int:
    """As many of an epoch's ``batches`` as the group trainer lets through."""
    limit = config.get("overfit_batches") or config.get("limit_train_batches", 1.0)
    return max(1, min(batches, limit) if isinstance(limit, int) else int(batches * limit))


def set_budget(config: dict[str, Any], words: list[str], batches: int) -> None:
    """Count ``trainer.max_epochs`` in steps, if it is given: in place of max_steps, or the smaller if both were typed.

    Args:
        config: resolved, plain values; ``trainer.max_steps`` and what follows it (``decay_steps``) are set.
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


def recipe(choices: Mapping[str, Any]) -> str:
    """Which experiment's settings are in force, and which one is made for the data, if that is another one."""
    experiment, dataset = choices.get("experiment"), choices.get("dataset")
    own = (cli.config_dir() / "experiment" / f"{dataset}.yaml").is_file() and dataset != experiment
    of_others = experiment is None or (cli.config_dir() / "dataset" / f"{experiment}.yaml").is_file()
    better = f"; made for these data is experiment={dataset}" if own and of_others else ""
    return f"recipe: experiment={experiment or 'null'}{better}"
