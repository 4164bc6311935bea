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
from typing import Any

import torch
from torch import Tensor

from flowdiff.denoisers.base import Denoiser, Perturbation
from flowdiff.errors import ConfigError, one_line
from flowdiff.objectives.losses import Loss

BACKEND: str | Callable[..., Any] = "inductor"  # of torch.compile

Terms = Callable[..., dict[str, Tensor]]


def compile_loss(loss: Loss, denoiser: Denoiser) -> Terms:
    """The loss, compiled: called as the loss is.

    Args:
        loss: the training objective.
        denoiser: what it will be called with.

    Raises:
        ConfigError: the denoiser says why it can't be one graph.
    """
    if denoiser.uncompilable:
        raise ConfigError("compile", "true", f"{denoiser.uncompilable}: use compile=false")
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

    function: Terms = torch.compile(terms, backend=BACKEND, dynamic=False)
    return function


def check_compiler(device: str) -> None:
    """Compile one addition, so that a missing compiler is said before anything else happens.

    Args:
        device: kind of the device that the loss will run on, "cpu" or "cuda".

    Raises:
        ConfigError: it can't be compiled.
    """
    if BACKEND != "inductor":
        return
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(8, device=device))
    except Exception as error:
        needed = "needs a C++ compiler (g++ or clang++, or its path in CXX)" if device == "cpu" else "needs Triton"
        raise ConfigError("compile", "true", f"{needed}, or use compile=false: {one_line(error, 200)}") from error
