"""How the processes of one run share its work.

With `ddp` each has the whole model, and they average their gradients; with `fsdp` each has a share of it
(`training.sharding`). Of Lightning's names, `ddp` expects that every parameter has a part in every step, as it is for
all of conf/; else `ddp_find_unused_parameters_true` looks through the graph of each step for those that have none. The
gradients lie in the buckets that are sent, not beside them.
"""

from collections.abc import Iterable

from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy, Strategy

from flowdiff.errors import ConfigError, FlowdiffError
from flowdiff.model.construction import build
from flowdiff.training.callbacks import DenoisingGrid, PowerAverages, Reconstructions, SampleGrid, ValidationMetrics
from flowdiff.training.request import TrainRequest
from flowdiff.training.sharding import Sharded

FSDP = "fsdp"
SEARCHING = "ddp_find_unused_parameters_true"
NEED_WHOLE = (DenoisingGrid, PowerAverages, Reconstructions, SampleGrid, ValidationMetrics)
NAMES = ("ddp", "ddp_find_unused_parameters_false", SEARCHING)


def find_strategy(chosen: object) -> Strategy | None:
    """The strategy that one of NAMES stands for; None: it is something else, for Lightning."""
    if chosen == FSDP:
        return Sharded()
    if chosen not in NAMES:
        return None
    return DDPStrategy(find_unused_parameters=chosen == SEARCHING, gradient_as_bucket_view=True)


def check(request: TrainRequest, callbacks: Iterable[Callback]) -> None:
    """Refuse beside `fsdp` what needs a whole model between the steps.

    Raises:
        ConfigError: a callback draws, measures or averages; the loss is compiled; an optimiser takes whole matrices.
    """
    if request.trainer.strategy != FSDP:
        return
    if any(isinstance(callback, NEED_WHOLE) for callback in callbacks):
        allowed = (
            "no process has the whole model for pictures, metrics and further averages in training: callbacks=minimal"
        )
        raise ConfigError("trainer.strategy", FSDP, allowed)
    if request.compile:
        raise ConfigError("trainer.strategy", FSDP, "not with compile=true")
    optimizer = build(request.optimizer)
    if getattr(getattr(optimizer, "func", optimizer), "needs_whole", False):
        raise ConfigError("trainer.strategy", FSDP, "no process has whole matrices for this optimizer: optimizer=adamw")


def explain(error: Exception) -> FlowdiffError | None:
    """What torch says of a parameter without a gradient, in a line; None: it speaks of something else."""
    if "Expected to have finished reduction in the prior iteration" not in str(error):
        return None
    return FlowdiffError(
        f"a parameter had no part in the last step, for which the processes wait: trainer.strategy={SEARCHING}"
    )
