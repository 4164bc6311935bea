r"""`compile=true`: the loss as one graph, by torch.compile.

What is compiled is a function of the denoiser and one batch,

    (denoiser, x0, labels, σ, ε, perturbation, progress)  →  the terms of the loss,

with the score, which is a torch.func.grad, inside of it and the gradients of the weights outside. The denoiser is an
argument: the graph holds no weights, a copy of the module (the average) or of its state knows nothing of it, and a
checkpoint is the same with it or without. Another share of dropout, or a shift of the embedding where there was none,
makes another graph.

Only training steps are compiled. All of them have one shape, so that there is one graph; a validation, which has a
smaller last batch and is short, runs as it is written.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from flowdiff.denoisers.base import Denoiser, Perturbation
from flowdiff.denoisers.compiled import check_compilable, compile_function
from flowdiff.objectives.losses import Loss

Terms = Callable[..., dict[str, Tensor]]


def compile_loss(loss: Loss, denoiser: Denoiser) -> Terms:
    """The loss, compiled: called as the loss is.

    Args:
        loss: the training objective.
        denoiser: what it will be called with.

    Raises:
        ConfigError: the denoiser says why it can't be one graph.
    """
    check_compilable(denoiser)
    torch.compiler.reset()  # graphs of an earlier job of the sweep would count against the limit of one function

    def terms(
        denoiser: Denoiser,
        x0: Tensor,
        labels: Tensor | None,
        sigma: Tensor,
        eps: Tensor,
        perturbation: Perturbation,
        progress: Tensor | float,
    ) -> dict[str, Tensor]:
        return loss(denoiser, x0, labels, sigma, eps, perturbation, progress)

    return compile_function(terms)
