"""What the commands are asked for: each key of conf/'s root, its type, its range and what it means.

`options` checks a composed configuration against these, and below them against the classes that it names: one
place for a key, from which the errors are made. Defaults stand in conf/, where a user reads them; what belongs to a
class (`flow.n_flows`) stands in that class's signature.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy

from flowdiff.bijections.activations import Activation
from flowdiff.data.base import ImageData
from flowdiff.data.first_stage import FirstStage
from flowdiff.denoisers.base import Denoiser
from flowdiff.denoisers.precondition import Precondition
from flowdiff.errors import ConfigError
from flowdiff.flows.base import Flow
from flowdiff.metrics.base import Metric
from flowdiff.model.configuration import check
from flowdiff.nn.embeddings import Conditioning
from flowdiff.objectives.augmentation import Augmentation
from flowdiff.objectives.losses import Loss
from flowdiff.objectives.noise import NoiseDistribution
from flowdiff.options import (
    LATER,
    MANY,
    Count,
    Guidance,
    Length,
    NonNegative,
    Pattern,
    Positive,
    Range,
    Seed,
    Share,
    Sigma,
    Steps,
)
from flowdiff.samplers.base import Sampler
from flowdiff.samplers.schedules import Schedule
from flowdiff.tasks.base import Task
from flowdiff.training.autoencoder import Autoencoder

Some = Annotated[int, Range(0, MANY)]
"""How many, none among them."""
Part = Annotated[int, Range(1, MANY)] | Annotated[float, Range(0, 1, above=True)]
"""A number of batches (1, 2, …) or a share of them (0.5, 1.0)."""
Name = Annotated[str, Pattern(r"[^\x00-\x1f/\\]{1,100}", "a name of at most 100 characters, without / and \\")]
Checkpoint = Annotated[str, Pattern(r"(?s).+", "a checkpoint, as RUN/checkpoints/last.ckpt")]
Partly = Annotated[Mapping[str, Any] | None, LATER]
"""A choice of a group, or some of its keys, over what the checkpoint has."""


Time = Annotated[str, Pattern(r"(?!00:00:00:00)\d{2}:\d{2}:\d{2}:\d{2}", "a time above 0, DD:HH:MM:SS, as 00:00:30:00")]


@dataclass
class Duration:
    """A time as a mapping, as {minutes: 30}."""

    days: NonNegative | None
    hours: NonNegative | None
    minutes: NonNegative | None
    seconds: NonNegative | None


@dataclass
class TrainerOptions:
    """conf/trainer: of Lightning's Trainer what flowdiff's training stands for. Its other arguments can be added."""

    accelerator: Literal["cpu", "gpu", "cuda", "mps", "auto"]
    devices: Annotated[int, Range(1, 4096)] | Literal["auto"] | Annotated[list[Some], Length(1, 4096)]
    num_nodes: Annotated[int, Range(1, 100_000)]
    strategy: Literal["auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false"] | Strategy
    precision: Literal["32-true", "32", 32, "16-mixed", "16", 16, "bf16-mixed", "bf16"]
    matmul_precision: Literal["highest", "high", "medium"] | None
    max_steps: Count
    max_epochs: Count | None
    max_time: Time | Duration | None
    val_check_interval: Part
    check_val_every_n_epoch: Count | None
    log_every_n_steps: Count
    gradient_clip_val: NonNegative | None
    accumulate_grad_batches: Annotated[int, Range(1, 1_000_000)]
    limit_train_batches: Part
    limit_val_batches: Some | Share
    overfit_batches: Some | Share
    detect_anomaly: bool
    profiler: Literal["simple", "advanced"] | None
    num_sanity_val_steps: Annotated[int, Range(-1, 1_000_000)]
    inference_mode: bool
    deterministic: bool | Literal["warn"]
    enable_progress_bar: bool
    enable_model_summary: bool
    use_distributed_sampler: bool
    default_root_dir: str


@dataclass
class TrainRequest:
    """conf/config.yaml. A key that others are made of (`seed`, `dataset.seed`) stands before them."""

    name: Name
    seed: Seed
    run_dir: str
    ckpt_path: Checkpoint | None
    resume: Literal["last"] | None
    resume_sweep: bool
    trainer: TrainerOptions
    lr: Positive
    weight_decay: NonNegative
    warmup_steps: Some
    decay_steps: Count
    dropout: Annotated[float, Range(0, 1, below=True)]
    label_dropout: Share
    compile: bool
    num_steps: Steps
    sigma_min: Sigma
    sigma_max: Sigma
    sigma_start: Sigma
    guidance_scale: Guidance
    evaluate: Literal["best", "last"] | None
    optimized_metric: str
    dataset: ImageData
    first_stage: FirstStage
    activation: Callable[..., Activation]
    conditioning: Callable[..., Conditioning]
    precondition: Callable[..., Precondition]
    flow: Callable[..., Flow]
    denoiser: Denoiser
    autoencoder: Callable[..., Autoencoder] | None
    loss: Loss
    noise: NoiseDistribution
    augment: Callable[..., Augmentation]
    sampler: Sampler
    schedule: Schedule
    callbacks: Mapping[str, Callback | None] | None
    logger: Mapping[str, Logger | None] | None
    metrics: Mapping[str, Metric | None] | None


@dataclass
class FirstStagePlace:
    """Where a model's autoencoder is."""

    path: str | None


Device = Annotated[str, Pattern(r"auto|cpu|mps|cuda(:\d+)?", "one of auto, cpu, cuda, cuda:<number>, mps")]
One = int | float | bool | str
ClassLabel = One | Annotated[list[One], Length(1, 1_000_000)] | None


@dataclass
class CheckpointRequest:
    """What every command on a checkpoint takes."""

    ckpt_path: Checkpoint
    first_stage: FirstStagePlace
    weights: Literal["ema", "raw"]
    output_dir: str


@dataclass
class DrawRequest(CheckpointRequest):
    """What every command takes that draws samples; None is the checkpoint's own."""

    data_root: str | None
    guidance_scale: Guidance | None
    seed: Seed
    num_steps: Steps | None
    sigma_min: Sigma | None
    sigma_max: Sigma | None
    sigma_start: Sigma | None
    device: Device
    batch_size: Annotated[int, Range(1, 1_000_000)]
    tile: Annotated[int, Range(1, 65_536)] | None
    sampler: Partly
    schedule: Partly


@dataclass
class SampleRequest(DrawRequest):
    """conf/sample.yaml."""

    num_samples: Annotated[int, Range(1, 10_000_000)] | None
    class_label: ClassLabel
    mask: str | None
    task: Task | None


@dataclass
class EvaluateRequest(DrawRequest):
    """conf/evaluate.yaml."""

    metrics: Mapping[str, Metric | None] | None
    denoiser: Partly
    run: str | None
    against: str | None
    split: Literal["train", "val", "test"]
    optimized_metric: str | None


@dataclass
class ExportRequest(CheckpointRequest):
    """conf/export.yaml."""

    format: Literal["safetensors", "diffusers"]


def check_request(request: type[Any], config: Mapping[str, Any]) -> None:
    """Refuse a configuration in which a key has a wrong type or value, by name, before anything is built.

    Args:
        request: one of the classes here.
        config: resolved, plain values.

    Raises:
        ConfigError: naming the key, the value and what is allowed.
    """
    check("", config, find_target, request)
    check_levels(config)


def check_levels(config: Mapping[str, Any]) -> None:
    """Refuse noise levels of sampling that don't stand in their order; None is not known yet."""
    low, high = (_level(config, key) for key in ("sigma_min", "sigma_max"))
    if low is not None and high is not None and low >= high:
        raise ConfigError("sigma_min", low, f"must be smaller than sigma_max={high:g}")
    for key in ("sigma_start", "sampler.sigma_start", "task.sigma_start"):
        start = _level(config, key)
        if start is not None and high is not None and start > high:
            raise ConfigError(key, start, f"must be at most sigma_max={high:g}")
        if start is not None and low is not None and start < low:
            raise ConfigError(key, start, f"must be at least sigma_min={low:g}")


def _level(config: Mapping[str, Any], key: str) -> float | None:
    """A noise level of a configuration; None where there is none, or an interpolation yet."""
    group, _, name = key.rpartition(".")
    node = config.get(group) if group else config
    found = node.get(name) if isinstance(node, Mapping) else None
    return found if isinstance(found, int | float) else None


def find_target(key: str, target: Any) -> Callable[..., Any]:
    """The class or function that a user's own `_target_` names.

    Raises:
        ConfigError: there is none.
    """
    module, _, name = target.rpartition(".") if isinstance(target, str) else ("", "", "")
    try:
        found = getattr(importlib.import_module(module), name) if module else None
    except (ImportError, AttributeError, ValueError):
        found = None
    if not callable(found):
        raise ConfigError(key, target, "must name a class, as flowdiff.flows.CouplingFlow")
    return found
