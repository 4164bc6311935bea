"""What flows are given: at each call beside their input, and once before training."""

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

MOST_DIM = 4096  # of data whose covariance has eigenvectors: those of more don't fit into memory

Probing = Literal["fixed", "fresh", "long"]
"""The random vectors and the series of an estimated log-determinant (`flows.logdet`): always the same ones, so that
log p is a function; fresh ones at each call, so that its mean is exact; or fresh ones with a series so long that what
is left to chance in its length, which a whole batch shares, is negligible."""


class Context(NamedTuple):
    """What a flow is conditioned on, and how it is evaluated.

    Attributes:
        embedding: (B, E), made from log σ and the class.
        kappa: (B,), κ(σ), the factor of every learned deviation from the identity.
        dropout: share of the hidden values that networks drop, in [0, 1).
        probes: those of an estimated log-determinant.
        first_batch: whether layers that take their first values from data (`flows.actnorm`) take them from this input.
    """

    embedding: Tensor
    kappa: Tensor
    dropout: float = 0.0
    probes: Probing = "fixed"
    first_batch: bool = False

    def split(self, size: int) -> list["Context"]:
        """The same of `size` rows at a time."""
        rows = zip(self.embedding.split(size), self.kappa.split(size), strict=True)
        return [self._replace(embedding=embedding, kappa=kappa) for embedding, kappa in rows]


class Sampled(Protocol):
    """Some rows of training data; `data.statistics.Sample` is that."""

    @property
    def x(self) -> Tensor: ...
    @property
    def classes(self) -> Tensor: ...
    @property
    def weights(self) -> Tensor: ...
    @property
    def times(self) -> int: ...


class Moments(Protocol):
    """Moments of training data with d coordinates and K classes; `data.statistics.DataStatistics` has them."""

    @property
    def class_means(self) -> Tensor:
        """(K + 1, d); the last row is the global mean."""

    @property
    def eigenvalues(self) -> Tensor:
        """(d,), of the covariance within a class, descending."""

    @property
    def eigenvectors(self) -> Tensor | None:
        """(d, d), one a column; None for d > MOST_DIM, where the covariance is taken as diagonal."""

    @property
    def sigma_data(self) -> float:
        """EDM's σ_data."""

    @property
    def sample(self) -> Callable[[int], Sampled] | None:
        """Some rows of the data, about so many; None: there are none to be had."""
