"""Denoisers: D(x, σ, labels), the interface of EDM's and k-diffusion's samplers."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from flowdiff.data.statistics import DataStatistics
from flowdiff.errors import FlowdiffError
from flowdiff.flows.context import Probing

Sigma = Tensor | float


class Perturbation(NamedTuple):
    """What moves one evaluation of a model away from the model itself, as training steps do; by default nothing.

    Attributes:
        drop: bool (B,), rows that use the null class whatever their label; None: no rows.
        shift: (B, E), added to the embedding of σ and class (`objectives.augmentation`); None: nothing is.
        dropout: share of the hidden values that networks drop, in [0, 1).
        probes: those of an estimated log-determinant.
    """

    drop: Tensor | None = None
    shift: Tensor | None = None
    dropout: float = 0.0
    probes: Probing = "fixed"


UNPERTURBED = Perturbation()


class Denoiser(nn.Module):
    """D(x, σ, labels) of samples (B, *shape) with K classes (0: unconditional).

    Attributes:
        has_density: it has log_prob and score.
        by_gradient: its D takes a gradient by x beside the forward pass.
        has_inverse: it has inverse, i.e. can be sampled by inverting the flow.
        normalized: its log_prob is a normalised log-density of x.
        exact: its log_prob is exact, not an estimate.
        frozen: why it can't be trained, nor be in a checkpoint; None: it can.
        uncompilable: why its training steps are not one graph for torch.compile; None: they are.
    """

    has_density = False
    by_gradient = False
    has_inverse = False
    normalized = False
    exact = True
    frozen: str | None = None
    uncompilable: str | None = None
    sigma_data: Tensor

    def __init__(self, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.num_classes = num_classes

    def fit(self, statistics: DataStatistics) -> None:
        """Take the moments of the training split, once, before training."""
        raise NotImplementedError

    @property
    def wants_first_batch(self) -> bool:
        """Whether it has yet to be initialised by data."""
        return False

    def initialise(self, x: Tensor, sigma: Sigma, labels: Tensor | None = None) -> None:
        """Take first values from a noised training batch, where it has none yet. Arguments as in `denoise`."""

    def denoise(
        self, x: Tensor, sigma: Sigma, labels: Tensor | None = None, perturbation: Perturbation = UNPERTURBED
    ) -> Tensor:
        """The estimate of x0 from x = x0 + σε.

        Args:
            x: (B, *shape).
            sigma: (B,), or one number for all.
            labels: (B,) in [0, K); None is the null class.
            perturbation: that of a training step.

        Raises:
            FlowdiffError: labels out of range, or for an unconditional model.
        """
        raise NotImplementedError

    def forward(
        self, x: Tensor, sigma: Sigma, labels: Tensor | None = None, perturbation: Perturbation = UNPERTURBED
    ) -> Tensor:
        return self.denoise(x, sigma, labels, perturbation)

    def _classes(self, x: Tensor, labels: Tensor | None, drop: Tensor | None = None) -> Tensor:
        """Rows of the class table, (B,) in [0, K]; K is the null class."""
        if labels is None:
            return torch.full((len(x),), self.num_classes, device=x.device)
        if not (torch.compiler.is_compiling() or (x.is_cuda and torch.cuda.is_current_stream_capturing())):
            check_labels(labels, self.num_classes)
        labels = labels.expand(len(x))
        return labels if drop is None else labels.masked_fill(drop, self.num_classes)


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Raise a `FlowdiffError` unless all labels are classes of a model with `num_classes` of them."""
    if not num_classes:
        raise FlowdiffError("class labels were given, but the model is unconditional: leave them out")
    if labels.is_floating_point():
        raise FlowdiffError(f"class labels must be integers in [0, {num_classes - 1}], not {labels.dtype}")
    wrong = (labels < 0) | (labels >= num_classes)
    if wrong.any():
        raise FlowdiffError(f"class label {int(labels[wrong][0])}: must be in [0, {num_classes - 1}]")


def batch_sigma(sigma: Sigma, x: Tensor) -> Tensor:
    """σ as (B,) in the dtype of x."""
    return torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))
