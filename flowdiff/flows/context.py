"""What a flow is given beside its input."""

from typing import NamedTuple

from torch import Tensor


class Context(NamedTuple):
    """What a flow is conditioned on.

    Attributes:
        embedding: (B, E), made from log σ and the class.
        kappa: (B,), κ(σ), the factor of every learned deviation from the identity.
    """

    embedding: Tensor
    kappa: Tensor
