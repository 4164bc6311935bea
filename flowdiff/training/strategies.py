"""How the processes of one run share its work: each has the whole model, and they average their gradients.

Of Lightning's names, `ddp` expects that every parameter has a part in every step, as it is for all of conf/; else
`ddp_find_unused_parameters_true` looks through the graph of each step for those that have none. The gradients lie in
the buckets that are sent, not beside them.
"""

from lightning.pytorch.strategies import DDPStrategy, Strategy

from flowdiff.errors import FlowdiffError

SEARCHING = "ddp_find_unused_parameters_true"
NAMES = ("ddp", "ddp_find_unused_parameters_false", SEARCHING)


def find_strategy(chosen: object) -> Strategy | None:
    """The strategy that one of NAMES stands for; None: it is something else, for Lightning."""
    if chosen not in NAMES:
        return None
    return DDPStrategy(find_unused_parameters=chosen == SEARCHING, gradient_as_bucket_view=True)


def explain(error: Exception) -> FlowdiffError | None:
    """What torch says of a parameter without a gradient, in a line; None: it speaks of something else."""
    if "Expected to have finished reduction in the prior iteration" not in str(error):
        return None
    return FlowdiffError(
        f"a parameter had no part in the last step, for which the processes wait: trainer.strategy={SEARCHING}"
    )
