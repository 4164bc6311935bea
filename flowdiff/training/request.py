"""What is asked of a training: each key of conf/config.yaml, its type and its range."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy
from torch.optim import Optimizer

from flowdiff.bijections.activations import Activation
from flowdiff.data.base import ImageData
from flowdiff.data.first_stage import FirstStage
from flowdiff.denoisers.base import Denoiser
from flowdiff.denoisers.precondition import Precondition
from flowdiff.flows.base import Flow
from flowdiff.flows.bases import Base
from flowdiff.metrics.base import Metric
from flowdiff.model.requests import Checkpoint
from flowdiff.nn.embeddings import Conditioning
from flowdiff.objectives.augmentation import Augmentation
from flowdiff.objectives.losses import Loss
from flowdiff.objectives.noise import NoiseDistribution
from flowdiff.objectives.weighting import Weighting
from flowdiff.options import (
    MANY,
    Count,
    Guidance,
    Length,
    NonNegative,
    Pattern,
    Positive,
    Range,
    Recipe,
    Seed,
    Share,
    Sigma,
    Steps,
)
from flowdiff.samplers.base import Sampler
from flowdiff.samplers.schedules import Schedule

Some = Annotated[int, Range(0, MANY)]
"""How many, none among them."""
Part = Annotated[int, Range(1, MANY)] | Annotated[float, Range(0, 1, above=True)]
"""A number of batches (1, 2, …) or a share of them (0.5, 1.0)."""
Name = Annotated[str, Pattern(r"[^\x00-\x1f/\\]{1,100}", "a name of at most 100 characters, without / and \\")]
Time = Annotated[str, Pattern(r"(?!00:00:00:00)\d{2}:\d{2}:\d{2}:\d{2}", "a time above 0, DD:HH:MM:SS, as 00:00:30:00")]


@dataclass
class Duration:
    """A time as a mapping, as {minutes: 30}."""

    days: NonNegative | None = None
    hours: NonNegative | None = None
    minutes: NonNegative | None = None
    seconds: NonNegative | None = None


@dataclass
class TrainerOptions:
    """conf/trainer: of Lightning's Trainer what flowdiff's training stands for.

    Attributes:
        others: further arguments of it, or of the class that `_target_` names.
    """

    accelerator: Literal["cpu", "gpu", "cuda", "mps", "auto"]
    devices: Annotated[int, Range(1, 4096)] | Literal["auto"] | Annotated[list[Some], Length(1, 4096)]
    num_nodes: Annotated[int, Range(1, 100_000)]
    strategy: (
        Literal["auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false", "fsdp"] | Strategy
    )
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
    cuda_graph: bool | None = False
    others: dict[str, Any] = field(default_factory=dict)


@dataclass
class TrainRequest:
    """conf/config.yaml. A key that others are made of (`seed`, `dataset.seed`) stands before them.

    `denoiser` and `loss` are built; activation, conditioning, precondition, base, flow and weighting are parts of them.
    """

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
    dataset: Recipe[ImageData]
    first_stage: Recipe[FirstStage]
    activation: Recipe[Callable[..., Activation]]
    conditioning: Recipe[Callable[..., Conditioning]]
    precondition: Recipe[Callable[..., Precondition]]
    base: Recipe[Callable[..., Base]]
    flow: Recipe[Callable[..., Flow]]
    denoiser: Recipe[Denoiser]
    loss: Recipe[Loss]
    noise: Recipe[NoiseDistribution]
    augment: Recipe[Callable[..., Augmentation]]
    optimizer: Recipe[Callable[..., Optimizer]]
    sampler: Recipe[Sampler]
    schedule: Recipe[Schedule]
    callbacks: Mapping[str, Recipe[Callback] | None] | None = None
    logger: Mapping[str, Recipe[Logger] | None] | None = None
    metrics: Mapping[str, Recipe[Metric] | None] | None = None
    weighting: Recipe[Weighting] | None = None
    autoencoder: Recipe[Callable[..., LightningModule]] | None = None
