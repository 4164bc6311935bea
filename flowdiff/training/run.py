"""One training run: build, fit, evaluate.

from flowdiff import training
from flowdiff.commands.train import request_of

training.train(request_of("flow=linear", "trainer.max_steps=200", "run_dir=runs/first"))
"""

import contextlib
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger

from flowdiff.data.base import ImageData, read_data
from flowdiff.data.folders import list_names
from flowdiff.data.latents import apply_first_stage
from flowdiff.denoisers.base import Denoiser
from flowdiff.denoisers.compiled import check_compiler
from flowdiff.denoisers.precondition import Gaussianised
from flowdiff.errors import ConfigError, FlowdiffError, NonFiniteError, one_line
from flowdiff.evaluation.measurement import build_metrics, evaluate_run, final_columns
from flowdiff.files import make_folder, report_removal, require_folder, write_text
from flowdiff.flows.bases import ClassMixture
from flowdiff.metrics.base import Metric
from flowdiff.model import checkpoint, seal
from flowdiff.model.construction import build, find_target, from_config
from flowdiff.model.facts import about
from flowdiff.model.requests import spell_out
from flowdiff.model.vocabulary import add_classes
from flowdiff.options import Recipe
from flowdiff.runs import lock, places
from flowdiff.runs.command_line import CommandLine
from flowdiff.runs.interrupts import Interrupted, Interrupts
from flowdiff.runs.words import command, override
from flowdiff.training import autoencoder, going_on, processes, strategies, tensorboard
from flowdiff.training.board import Board, closing
from flowdiff.training.building import (
    build_augmentation,
    build_loss,
    build_trainer,
    check_devices,
    fall_back,
    find_checkpoints,
    find_root,
    keep_environment,
    list_unused,
    name_recipe,
    seed_all,
    set_budget,
)
from flowdiff.training.callbacks import EMA, Checkpoints
from flowdiff.training.checkpoint_files import AtomicCheckpointIO
from flowdiff.training.data_module import DataModule
from flowdiff.training.diffusion import Diffusion, initialise
from flowdiff.training.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from flowdiff.training.optimisation import Optimised
from flowdiff.training.outside import says_outside
from flowdiff.training.request import TrainRequest

NOTEBOOK = CommandLine()


def train(
    request: TrainRequest, command_line: CommandLine = NOTEBOOK, content: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Train one model and evaluate it.

    Args:
        request: what is trained, and how. It is filled in: a budget in epochs becomes one in steps, and what the model
            can't use is replaced.
        command_line: that led to it.
        content: of `request.ckpt_path`, if it has been read.

    Returns:
        `checkpoint` (the one evaluated), `last` and `run_dir` (paths), `step`, `metrics` (name to
        entry of metrics.json; empty without metrics) and `validation` (the last logged values).
    """
    run = Run(request, command_line, content)
    with use_matmul_precision(request.trainer.matmul_precision), run.hold_folder():
        return run.go()


@dataclass
class Run:
    """A run in a folder of its own.

    Attributes:
        request, command_line: see `train`.
        content: of the checkpoint that it goes on from; None: of `request.ckpt_path`, or a new run.
        run_dir: the folder, made and locked by `hold_folder`.
    """

    request: TrainRequest
    command_line: CommandLine
    content: dict[str, Any] | None
    run_dir: Path = field(init=False)

    @contextmanager
    def hold_folder(self) -> Iterator[None]:
        """Refuse what can be known before there are data; within it other processes keep out of the run's folder."""
        request, config = self.request, spell_out(self.request)
        check_devices(request.trainer)
        if request.compile:
            check_compiler("cuda" if request.trainer.accelerator in ("gpu", "cuda") else "cpu")
        if request.ckpt_path:
            self.content = self.content or checkpoint.read(request.ckpt_path)  # says what is wrong with it, if anything
            going_on.check_left(self.content, request, self.command_line.words)
        self.run_dir = make_folder(request.run_dir, "run_dir")
        places.check(config, self.run_dir)
        if not request.ckpt_path:  # all of it is the user's word, and no file's
            add_classes({key: config[key] for key, part in vars(request).items() if isinstance(part, Recipe)})
            if says_outside(config):
                seal.own_key(make=True)  # what the user has said of paths is followed later, by this user
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lock.occupy(self.run_dir))
            except lock.OtherJob as error:
                raise FlowdiffError(f"run_dir={error}") from error
            stack.enter_context(report_removal(self.run_dir))
            yield

    def go(self) -> dict[str, Any]:
        request, words = self.request, self.command_line.words
        seed_all(request.seed)
        if isinstance(request.dataset, Recipe):
            request.dataset = Recipe("dataset", find_root(request.dataset.content))
        data = apply_first_stage(build(request.first_stage), read_data(build(request.dataset)))
        batches = len(data.batches("train"))
        set_budget(request, words, batches)
        module = self.build_autoencoder(data) if request.autoencoder else self.build_diffusion(data)
        # now: wrong settings are refused before the training
        metrics = build_metrics(request.metrics or {})
        callbacks = [build(c, Callback) for c in (request.callbacks or {}).values() if c]
        strategies.check(request, callbacks)
        callbacks.sort(key=lambda callback: isinstance(callback, EMA))  # last: the others see the average it puts in
        loggers = [build(c, Logger) for c in (request.logger or {}).values() if c]
        step = -1 if self.content is None else int(self.content["global_step"])  # the last one behind the run
        for logger in loggers:
            if isinstance(logger, CSVLogger | TensorBoardLogger | WandbLogger):
                logger.begin(step, self.command_line)
        trainer = build_trainer(request.trainer, callbacks, loggers, batches, AtomicCheckpointIO(self.content))
        processes.check(trainer, self.command_line)
        with closing([logger for logger in loggers if isinstance(logger, Board) and trainer.is_global_zero]):
            if trainer.is_global_zero:
                self.announce(trainer, module, data, metrics, loggers)
            self.fit(trainer, module, data)
            return self.finish(trainer, module, data, metrics, loggers)

    def build_diffusion(self, data: ImageData) -> Diffusion:
        """The denoiser, its loss and its noise; what an experiment chose and the model can't use is replaced."""
        request, words = self.request, self.command_line.words
        denoiser = self.build_denoiser(data)
        fall_back(request, denoiser, words)
        augmentation = build_augmentation(request, denoiser, data, words)
        entry = self.describe(data)
        from_config(denoiser, entry["config"], images=data.levels is not None)  # refuses wrong sampling settings now
        denoiser.fit(data.statistics(denoiser.num_classes))  # 0 classes with conditioning=none
        if any(isinstance(part, Gaussianised) and not part.bend for part in denoiser.modules()):
            print(
                "precondition=gaussianised would begin worse than standardized on these data: used as that", flush=True
            )
        if any(isinstance(part, ClassMixture) and not part.is_fitted for part in denoiser.modules()):
            print("base=mixture has nothing to be fitted to, or too many coordinates: used as normal", flush=True)
        module = Diffusion(denoiser, build_loss(request), build(request.noise), augmentation, request, entry)
        if not request.ckpt_path:
            initialise(denoiser, data, module.noise)
        return module

    def build_denoiser(self, data: ImageData) -> Denoiser:
        """The model with fresh weights; one that goes on from a file, which may be a stranger's, not larger than it."""
        node, path = spell_out(self.request.denoiser), self.request.ckpt_path
        if path:
            with checkpoint.limit_to_file(path):
                denoiser = checkpoint.build_denoiser({"denoiser": node}, data.shape, data.num_classes)
            assert isinstance(denoiser, Denoiser)
            return denoiser
        frozen = getattr(find_target("denoiser._target_", node["_target_"]), "frozen", None)
        if frozen:
            raise FlowdiffError(frozen)
        return build(self.request.denoiser, Denoiser, shape=list(data.shape), num_classes=data.num_classes)

    def build_autoencoder(self, data: ImageData) -> autoencoder.Autoencoder:
        """The autoencoder of the data's images."""
        with checkpoint.limit_to_file(self.request.ckpt_path):
            return autoencoder.build(self.request, data, self.describe(data))

    def describe(self, data: ImageData) -> dict[str, Any]:
        """The entry `"flowdiff"` of the run's checkpoints, with the folder that `--config-dir` names."""
        given, config = self.command_line.source, spell_out(self.request)
        source = {**(config if given is None else given)}
        source["dataset"] = keep_environment(source["dataset"], config["dataset"])
        entry = checkpoint.describe(config, data, source=source, overrides=list(self.command_line.words))
        return entry | {"config_dir": self.command_line.config_dir}

    def announce(
        self,
        trainer: Trainer,
        module: Optimised,
        data: ImageData,
        metrics: Mapping[str, Metric],
        loggers: list[Logger],
    ) -> None:
        """Say what begins, and write it down: config.yaml, and what TensorBoard shows beside the curves."""
        line, config = self.command_line, module.entry["config"]
        if line.choices and not self.request.ckpt_path:
            print(name_recipe(line.choices), flush=True)
        size, samples = sum(p.numel() for p in module.parameters()), len(data.images("train")[1])
        print(
            f"{self.request.name}: {size:,} parameters, {samples:,} training samples; run folder {self.run_dir}",
            *data.notes,
            *list_unused(config, line.words),
            sep="\n",
            flush=True,
        )
        classes = None if self.content is None else self.content["flowdiff"].get("class_names")
        if classes is not None and classes != data.class_names:
            was, now = list_names(classes) or "none", list_names(data.class_names) or "none"
            print(f"warning: the checkpoint's classes are {was}, those of the data {now}", flush=True)
        write_text(self.run_dir / "config.yaml", tensorboard.to_yaml(config))
        boards = [logger for logger in loggers if isinstance(logger, TensorBoardLogger)]
        shown = self.columns(trainer, module, data, metrics) if boards else []
        for board in boards:
            tensorboard.begin(board.experiment, config, line, shown)

    def columns(self, trainer: Trainer, module: Optimised, data: ImageData, metrics: Mapping[str, Metric]) -> list[str]:
        """The scalars that the run will write and that are columns of TensorBoard's HParams."""
        final: list[str] = []
        if self.request.evaluate and find_checkpoints(trainer) is not None:
            final = autoencoder.columns(data) if isinstance(module, autoencoder.Autoencoder) else []
            if isinstance(module, Diffusion):
                final = final_columns(metrics, module.denoiser, data)
        validated = module.list_validated(data) if trainer.limit_val_batches else []
        return [*(f"final/{name}" for name in final), *validated]

    def fit(self, trainer: Trainer, module: Optimised, data: ImageData) -> None:
        """Lightning's fit, with signals and non-finite losses turned into checkpoints and clear words."""
        saver, path = find_checkpoints(trainer), self.request.ckpt_path
        try:
            with Interrupts() as interrupts, processes.start_others(trainer, path, self.command_line):
                if saver is not None:
                    saver.interrupts, interrupts.patient = interrupts, True
                trainer.fit(module, datamodule=DataModule(data), ckpt_path=path, weights_only=True)
                if interrupts.received is not None:  # after the last step
                    raise Interrupted(interrupts.received)
        except NonFiniteError as error:
            last = saver.last_path if saver is not None and saver.last_path.exists() else None
            kept = f"the last good checkpoint is {last}" if last else "no checkpoint was saved yet"
            advice = "a smaller lr, a longer warmup_steps or loss=likelihood may help"
            raise NonFiniteError(f"{error}: {kept}; {advice}") from error
        except Interrupted as stop:
            if trainer.is_global_zero and not Interrupts.in_worker:
                stop.say(self.how_to_go_on(trainer.global_step, saver))
            raise
        except Exception as error:
            if (unused := strategies.explain(error)) is not None:
                raise unused from error
            of_others = isinstance(error, ConfigError) or str(error).startswith(("ckpt_path=", str(self.run_dir)))
            if path and not module.has_begun and not of_others:
                raise about(path, self.explain_restoring(error, module)) from error
            raise

    def explain_restoring(self, error: Exception, module: Optimised) -> FlowdiffError:
        """Why a checkpoint can't be gone on from."""
        if "state_dict for" not in str(error):
            return FlowdiffError(f"can't be gone on from: {one_line(error, 300)}")
        theirs = (self.content or {})["flowdiff"]["config"]
        changed = going_on.changes_of_model(theirs, module.entry["config"])
        return FlowdiffError(f"the model is not the checkpoint's: {changed}")

    def how_to_go_on(self, step: int, saver: Checkpoints | None) -> str:
        """What a run says that a signal has stopped at a step."""
        if saver is None or not saver.last_path.exists():
            return f"stopped at step {step}; no checkpoint was saved"
        since = "" if saver.saved_step == step else f" from step {saver.saved_step}"
        given = self.command_line.config_dir
        options = [shlex.quote(f"--config-dir={given}")] if given else []
        again = command("train", *options, override("ckpt_path", saver.last_path.absolute()))
        return f"stopped at step {step}; to go on{since}:\n  {again}"

    def finish(
        self,
        trainer: Trainer,
        module: Optimised,
        data: ImageData,
        metrics: Mapping[str, Metric],
        loggers: list[Logger],
    ) -> dict[str, Any]:
        """Evaluate the checkpoint chosen by `evaluate`, write metrics.json and the end of TensorBoard's HParams row."""
        saver, validation = find_checkpoints(trainer), trainer.callback_metrics
        result: dict[str, Any] = {
            "run_dir": str(self.request.run_dir),
            "step": trainer.global_step,
            "metrics": {},
            "validation": {name: float(value) for name, value in validation.items()},
        }
        if saver is not None:
            best = self.request.evaluate == "best" and saver.best_path.exists()
            chosen = saver.best_path if best else saver.last_path
            result |= {"checkpoint": str(chosen), "last": str(saver.last_path)}
        if not trainer.is_global_zero:
            return result
        if saver is not None:
            require_folder(self.run_dir)
            if not chosen.is_file():
                raise FlowdiffError(f"{chosen} is not there: no step was trained, or the file was removed")
            if self.request.evaluate:
                result["metrics"] = self.measure(trainer, module, data, metrics, chosen)
        final = {name: entry["value"] for name, entry in result["metrics"].items() if entry.get("value") is not None}
        for logger in loggers:
            if isinstance(logger, Board):
                logger.end(final, trainer.global_step)
        return result

    def measure(
        self, trainer: Trainer, module: Optimised, data: ImageData, metrics: Mapping[str, Metric], path: Path
    ) -> dict[str, dict[str, Any]]:
        """What is in metrics.json of the checkpoint that the run ends with."""
        device = trainer.strategy.root_device
        try:
            if isinstance(module, autoencoder.Autoencoder):
                return autoencoder.report(path, self.request, self.run_dir, data)
            return evaluate_run(path, metrics, self.run_dir, data, self.request.seed, device) if metrics else {}
        except Interrupted as stop:
            if not Interrupts.in_worker:
                again = command("evaluate", override("ckpt_path", path.absolute()))
                stop.say(f"stopped at step {trainer.global_step}, before the last metrics; to measure:\n  {again}")
            raise


@contextmanager
def use_matmul_precision(chosen: str | None) -> Iterator[None]:
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
