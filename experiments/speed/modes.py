"""The ways of doing a training step."""

from collections.abc import Callable

from experiments.speed.models import Model, Work, step_of
from flowdiff.training.compilation import compile_loss


def eager_step(model: Model) -> Work:
    """As it is written."""
    return step_of(model, model.loss)


def compiled_step(model: Model) -> Work:
    """With the loss compiled, which happens at the first call."""
    return step_of(model, compile_loss(model.loss, model.denoiser))


#: What makes a step of a model.
MODES: dict[str, Callable[[Model], Work]] = {"eager": eager_step, "compiled": compiled_step}
