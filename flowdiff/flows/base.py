r"""The contract of every flow: an invertible map whose log-determinant is known.

    z, logdet = f(u; σ, c),      log p(u) = log N(z; 0, I) + logdet,      u = f⁻¹(z; σ, c).

Flows compose: (f₂∘f₁) has the sum of the log-determinants. Every flow is the identity at initialisation, and every
learned deviation from it is multiplied by κ(σ) (see `denoisers.precondition`). Log-scales are softly bounded,
s·tanh(·/s), and what a network is shown is bounded as well, so that far from the data, where nothing was learned,
a flow is an affine map with moderate slopes and its score stays finite.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from flowdiff.bijections.activations import Activation
from flowdiff.flows.context import Context, Moments
from flowdiff.tensors import sum_per_sample

ActivationFactory = Callable[[], Activation]


class Flow(nn.Module):
    """An invertible map of (B, *shape) to (B, *shape), given a `Context`. What it is, its flows inside say together."""

    def forward(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """x to z, same shape, and log|det dz/dx| (B,)."""
        raise NotImplementedError

    def terms(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """z, and log|det dz/dx| as the terms (B, …) whose sum over a sample it is."""
        return self(x, context)

    def inverse(self, z: Tensor, context: Context) -> Tensor:
        """The x with forward(x) = z."""
        raise NotImplementedError

    def _inner_flows(self) -> Iterator["Flow"]:
        """The flows that it is made of, at any depth."""
        return (module for module in self.modules() if isinstance(module, Flow) and module is not self)

    @property
    def normalized(self) -> bool:
        """Whether it is onto, so that exp(log p) integrates to 1 and an inverse exists everywhere."""
        return all(flow.normalized for flow in self._inner_flows())

    @property
    def exact(self) -> bool:
        """Whether its log-determinant is exact, not an estimate (`flows.logdet`)."""
        return all(flow.exact for flow in self._inner_flows())

    @property
    def wants_first_batch(self) -> bool:
        """Whether it has yet to take first values from a batch of data (`Context.first_batch`)."""
        return any(flow.wants_first_batch for flow in self._inner_flows())

    @property
    def uncompilable(self) -> str | None:
        """Why its training steps are not one graph for torch.compile; None: they are."""
        return next((flow.uncompilable for flow in self._inner_flows() if flow.uncompilable), None)

    def fit(self, statistics: Moments) -> None:
        """Take what it needs from the training data's moments, once, before training. Nothing by default."""
        for flow in self._inner_flows():
            if type(flow).fit is not Flow.fit:
                flow.fit(statistics)


class Step(Flow):
    """A flow that gives the terms of its log-determinant; a `Composite` sums those of all its steps at once."""

    def forward(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        z, terms = self.terms(x, context)
        return z, sum_per_sample(terms)

    def terms(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class Composite(Flow):
    """Steps one after the other, on samples viewed as `inner_shape`.

    Args:
        steps: from the data to the latent.
        inner_shape: the shape the steps work on, e.g. (d,) for flattened images.
    """

    def __init__(self, steps: Iterable[Flow], inner_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)
        self.inner_shape = tuple(inner_shape)

    def forward(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        h, terms = x.reshape(len(x), *self.inner_shape), []
        for step in self.steps:
            h, change = step.terms(h, context)  # type: ignore[operator]
            terms.append(change.reshape(len(x), -1))
        return h.reshape(x.shape), torch.cat(terms, 1).sum(1)

    def inverse(self, z: Tensor, context: Context) -> Tensor:
        h = z.reshape(len(z), *self.inner_shape)
        for step in reversed(self.steps):
            h = step.inverse(h, context)  # type: ignore[operator]
        return h.reshape(z.shape)
