"""One training run: instantiate, fit, evaluate. The command line around it is `flowdiff.train`."""

import contextlib
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from flowdiff.commands.requests import TrainRequest, check_request, find_target
from flowdiff.commands.swept import swept_keys
from flowdiff.data.base import ImageData, loaded
from flowdiff.data.folders import listed
from flowdiff.data.latents import seen_through
from flowdiff.denoisers.base import Denoiser
from flowdiff.denoisers.precondition import Gaussianised
from flowdiff.denoisers.score_flow import ScoreFlow
from flowdiff.errors import ConfigError, FlowdiffError, NonFiniteError, one_line
from flowdiff.evaluation.measurement import build_metrics, evaluate_run, final_columns, report_autoencoder
from flowdiff.files import make_folder, report_removal, require_folder
from flowdiff.flows.actnorm import initialising, wants_data
from flowdiff.metrics.base import Metric
from flowdiff.model import checkpoint, seal
from flowdiff.model.construction import from_config, make
from flowdiff.model.facts import about
from flowdiff.objectives.losses import Noised
from flowdiff.objectives.noise import NoiseDistribution
from flowdiff.runs import lock
from flowdiff.runs.interrupts import Interrupted, Interrupts
from flowdiff.runs.words import command, override, typed_words
from flowdiff.training import autoencoder, going_on, places, processes, tensorboard
from flowdiff.training.building import (
    build_augmentation,
    build_trainer,
    check_devices,
    fall_back,
    located,
    plain,
    recipe,
    saver_of,
    says_outside,
    seed,
    set_budget,
    unused,
)
from flowdiff.training.callbacks.average import EMA
from flowdiff.training.callbacks.checkpoints import Checkpoints
from flowdiff.training.compilation import check_compiler
from flowdiff.training.diffusion import Diffusion
from flowdiff.training.loggers import CSVLogger, TensorBoardLogger
from flowdiff.training.optimisation import Optimised


def train(cfg: DictConfig, words: list[str] | None = None) -> dict[str, Any]:
    """Train one model and evaluate it.

    Args:
        cfg: composed from conf/config.yaml. `run_dir` must be set where Hydra doesn't run the job.
        words: the command line that led to `cfg`; None: that of Hydra's job, if there is one.

    Returns:
        `checkpoint` (the one evaluated), `last` and `run_dir` (paths), `step`, `metrics` (name to
        entry of metrics.json; empty without metrics) and `validation` (the last logged values).
    """
    source = plain(cfg, resolve=False)
    check_request(TrainRequest, source)  # first: what is wrong here is what an interpolation would stumble over
    config = plain(cfg)
    words = typed_words() if words is None else words
    check_request(TrainRequest, config)
    with matmul_precision(config["trainer"].get("matmul_precision")):
        return train_plain(config, words, source)


def train_plain(config: dict[str, Any], words: list[str], source: dict[str, Any]) -> dict[str, Any]:
    """`train` of a resolved configuration; `source` is the one before its resolution, for the checkpoint."""
    check_devices(config["trainer"])
    if config.get("compile"):
        check_compiler("cuda" if config["trainer"].get("accelerator") in ("gpu", "cuda") else "cpu")
    step, classes = -1, None  # the last one behind the run, and the names of its classes
    if config.get("ckpt_path"):
        content = checkpoint.read(config["ckpt_path"])  # says what is wrong with it, if anything is
        going_on.check_left(content, config, words)
        step, classes = int(content["global_step"]), content["flowdiff"].get("class_names")
        del content
    run_dir = make_folder(config["run_dir"], "run_dir")
    places.check(config, run_dir)
    if not config.get("ckpt_path") and says_outside(config):
        seal.own_key(make=True)  # what the user has said of paths is followed later, by this user
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock.occupied(run_dir))
        except lock.OtherJob as error:
            raise FlowdiffError(f"run_dir={error}") from error
        stack.enter_context(report_removal(run_dir))
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
    data = seen_through(make(config["first_stage"], "first_stage"), loaded(make(config["dataset"], "dataset")))
    set_budget(config, words, len(data.train_dataloader()))
    build = build_autoencoder if config.get("autoencoder") else build_diffusion
    module = build(config, data, words, source)
    # now: wrong settings are refused before the training
    metrics = build_metrics(config.get("metrics") or {}, typed=True)
    callbacks = [make(c, f"callbacks.{k}", Callback) for k, c in (config.get("callbacks") or {}).items() if c]
    callbacks.sort(key=lambda callback: isinstance(callback, EMA))  # last: the others see the average it puts in
    loggers = [make(c, f"logger.{k}", Logger) for k, c in (config.get("logger") or {}).items() if c]
    for logger in loggers:
        if isinstance(logger, CSVLogger | TensorBoardLogger):
            logger.last_step = step  # what an earlier process logged after it is logged again
    trainer = build_trainer(config["trainer"], callbacks, loggers, len(data.train_dataloader()))
    processes.check(trainer)
    boarded = any(isinstance(logger, TensorBoardLogger) for logger in loggers)
    shown = columns(config, trainer, module, data, metrics) if boarded else []
    size, samples = sum(p.numel() for p in module.parameters()), len(data.images("train")[1])
    if trainer.is_global_zero:
        if HydraConfig.initialized() and not config["ckpt_path"]:
            print(recipe(HydraConfig.get().runtime.choices), flush=True)
        print(
            f"{config['name']}: {size:,} parameters, {samples:,} training samples; run folder {run_dir}",
            *data.notes,
            *unused(config, words),
            sep="\n",
            flush=True,
        )
        if classes is not None and classes != data.class_names:
            was, now = listed(classes) or "none", listed(data.class_names) or "none"
            print(f"warning: the checkpoint's classes are {was}, those of the data {now}", flush=True)
        OmegaConf.save(OmegaConf.create(config), run_dir / "config.yaml")
        for logger in loggers:
            if isinstance(logger, TensorBoardLogger):
                tensorboard.begin(logger.experiment, config, words, swept_keys(), shown)
    fit(trainer, module, data, config)
    return finish(trainer, data, config, loggers)


def build_diffusion(config: dict[str, Any], data: ImageData, words: list[str], source: dict[str, Any]) -> Diffusion:
    """The denoiser, its loss and its noise; what an experiment chose and the model can't use is replaced."""
    if config.get("ckpt_path"):  # a stranger's, it may be
        with checkpoint.within(config["ckpt_path"]):
            denoiser = checkpoint.build_denoiser(config, data.shape, data.num_classes)
        assert isinstance(denoiser, Denoiser)
    else:
        frozen = getattr(find_target("denoiser._target_", config["denoiser"]["_target_"]), "frozen", None)
        if frozen:
            raise FlowdiffError(frozen)
        denoiser = make(config["denoiser"], "denoiser", Denoiser, shape=list(data.shape), num_classes=data.num_classes)
    fall_back(config, denoiser, words)
    augmentation = build_augmentation(config, denoiser, data, words)
    from_config(denoiser, config, images=data.levels is not None)  # refuses wrong sampling settings now
    denoiser.fit(data.statistics(denoiser.num_classes))  # 0 classes with conditioning=none
    if any(isinstance(part, Gaussianised) and not part.bend for part in denoiser.modules()):
        print("precondition=gaussianised would begin worse than standardized on these data: used as that", flush=True)
    entry = describe(config, data, source, words)
    module = Diffusion(
        denoiser, make(config["loss"], "loss"), make(config["noise"], "noise"), augmentation, config, entry
    )
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
    """The entry `"flowdiff"` of the run's checkpoints, with the folder that `--config-dir` names."""
    entry = checkpoint.describe(config, data, source=source, overrides=words)
    return entry | {"config_dir": going_on.config_dir()}


def columns(
    config: Mapping[str, Any], trainer: Trainer, module: Optimised, data: ImageData, metrics: Mapping[str, Metric]
) -> list[str]:
    """The scalars that the run will write and that are columns of TensorBoard's HParams: of validation, and final."""
    found = module.validated(data) if trainer.limit_val_batches else []
    if config["evaluate"] and saver_of(trainer) is not None:
        final = autoencoder.columns(data) if isinstance(module, autoencoder.Autoencoder) else []
        if isinstance(module, Diffusion):
            final = final_columns(metrics, module.denoiser, data)
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
        of_others = isinstance(error, ConfigError) or str(error).startswith(("ckpt_path=", str(config["run_dir"])))
        if path and not module.has_begun and not of_others:
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
    """Evaluate the checkpoint chosen by `evaluate`, write metrics.json and the end of TensorBoard's HParams row."""
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
        require_folder(config["run_dir"])
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
            tensorboard.end(logger.experiment, final, trainer.global_step)
            logger.finalize("success")
    return result


@contextmanager
def matmul_precision(chosen: str | None) -> Iterator[None]:
    """Within it, that of float32 matrix products is `trainer.matmul_precision`; then what it was, for the next job.

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
