"""What is asked of an evaluation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from flowdiff.metrics.base import Metric
from flowdiff.model.requests import DrawRequest, Partly
from flowdiff.options import Recipe


@dataclass
class EvaluateRequest(DrawRequest):
    """conf/evaluate.yaml.

    Attributes:
        metrics: by name; None: the checkpoint's own.
        denoiser: a ready-made one that is measured beside the checkpoint.
        run: a run folder or a pattern, which the command line has written out as `ckpt_path`.
        against: another checkpoint that is measured beside this one.
        optimized_metric: for a search, which reads it itself.
    """

    metrics: Mapping[str, Recipe[Metric] | None] | None = None
    denoiser: Partly = None
    run: str | None = None
    against: str | None = None
    split: Literal["train", "val", "test"] = "test"
    optimized_metric: str | None = None
