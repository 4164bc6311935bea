"""Toy data: points in the plane, drawn once from a distribution whose density is known."""

from typing import Annotated

import torch
from torch import Tensor

from flowdiff.data.base import ImageData, Split
from flowdiff.data.distributions import DISTRIBUTIONS
from flowdiff.errors import ConfigError
from flowdiff.options import Count, Positive, Range, Seed, Workers, checked


class Toy(ImageData):
    """Points of one distribution: shape (2,), no levels, about unit range.

    Args:
        name: a class of `data.distributions`, two_moons for TwoMoons.
        noise: standard deviation around the curve or centre; None is the distribution's default.
        conditional: the component is the class; otherwise the data have no classes.
        num_train, num_test: numbers of points. The validation split has as many points as the test split.
            Points are the same for every `seed`: the test points of two runs are the same points.
    """

    @checked
    def __init__(
        self,
        name: str = "two_moons",
        noise: Positive | None = None,
        conditional: bool = False,
        num_train: Annotated[int, Range(2, 2_000_000)] = 50000,
        num_test: Annotated[int, Range(1, 2_000_000)] = 10000,
        batch_size: Count = 512,
        seed: Seed = 0,
        num_workers: Workers = 0,
    ) -> None:
        if name not in DISTRIBUTIONS:
            raise ConfigError("dataset.name", name, f"must be one of {', '.join(DISTRIBUTIONS)}")
        self.distribution = DISTRIBUTIONS[name](noise)
        self.counts = {"train": num_train, "val": num_test, "test": num_test}
        super().__init__(
            name=name,
            shape=(2,),
            num_classes=self.distribution.components if conditional else 0,
            levels=None,
            batch_size=batch_size,
            seed=seed,
            num_workers=num_workers,
        )

    def load(self) -> dict[str, Split]:
        """Draw the three splits, each from its own fixed seed."""
        splits = {}
        for stream, (split, n) in enumerate(self.counts.items()):
            x, component = self.distribution.sample(n, seed=1000 + stream)
            splits[split] = (x, component if self.num_classes else torch.zeros(len(x), dtype=torch.long))
        return splits

    def log_prob(self, x: Tensor) -> Tensor:
        """The data's own log density, (n, 2) → (n,) float64."""
        return self.distribution.log_prob(x)
