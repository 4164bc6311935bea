r"""Flows one after the other: z = f_K(…f_2(f_1(u))), log-determinants added. The first one is nearest to the data."""

from collections.abc import Callable, Mapping, Sequence

from flowdiff.errors import ConfigError
from flowdiff.flows.base import Composite, Flow


class Stack(Composite):
    """The flows of a list, each made with shape= and context_dim=.

    Args:
        shape: shape of a sample.
        context_dim: length of the embedding of σ and class.
        flows: from the data to the latent; a mapping gives them names, by which the command line reaches them:
            `flow.flows.pixels.n_flows=4`.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        context_dim: int,
        flows: Sequence[Callable[..., Flow]] | Mapping[str, Callable[..., Flow]],
    ) -> None:
        if not flows:
            raise ConfigError("flow.flows", "[]", "must list at least one flow")
        factories = flows.values() if isinstance(flows, Mapping) else flows
        super().__init__([make(shape=shape, context_dim=context_dim) for make in factories], shape)
