"""The ways of doing a training step."""

from collections.abc import Callable

from experiments.speed.models import Model, Work, step_of
from flowdiff.training.compilation import compile_loss
from flowdiff.training.graphed import make_step


def eager_step(model: Model) -> Work:
    """As it is written."""
    return step_of(model, model.loss)


def compiled_step(model: Model) -> Work:
    """With the loss compiled, which happens at the first call."""
    return step_of(model, compile_loss(model.loss, model.denoiser))


def graphed_step(model: Model) -> Work:
    """With the loss and its gradients recorded as one CUDA graph, which happens at the first call."""
    mean_loss = make_step(model.loss, is_recorded=True)
    return step_of(model, lambda *given: {"loss": mean_loss(*given)[0]})


ON_A_GPU = "graphed"
#: What makes a step of a model.
MODES: dict[str, Callable[[Model], Work]] = {"eager": eager_step, "compiled": compiled_step, ON_A_GPU: graphed_step}
