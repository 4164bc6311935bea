"""Distributions in the plane whose density is known, so that a model's likelihood has something to be held
against.

Each draws points and their component, and knows log p(x): a Gaussian around a curve is the average of N(x;
c(t), noise² I) over the curve (a fine midpoint rule in t), a mixture of Gaussians is itself, the checkerboard
is uniform, and the pinwheel is a Gaussian under an area-preserving twist. Coordinates are shifted and scaled
by fixed constants so that the data lie in about [−1, 1]²; with x = (y − shift)/scale, log p(x) = log p(y) + 2
log scale.
"""

import math

import numpy as np
import torch
from torch import Tensor

from flowdiff.options import snake_case


class Distribution:
    """A distribution in the plane.

    Attributes:
        components: number of parts (moons, rings, arms, squares, Gaussians); a point's label is its part.
        noise: default standard deviation around the curve or the centre, before scaling.
        shift, scale: the fixed affine map to about [−1, 1]².
    """

    components: int
    noise: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0

    def __init__(self, noise: float | None = None) -> None:
        self.noise = type(self).noise if noise is None else float(noise)

    def raw_sample(self, n: int, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
        """Draw `n` unscaled points (n, 2) and their components (n,)."""
        raise NotImplementedError

    def raw_log_prob(self, y: Tensor) -> Tensor:
        """Log density of unscaled points: (n, 2) float64 to (n,)."""
        raise NotImplementedError

    def sample(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Draw `n` points: x (n, 2) float32 and the component of each (n,) int64, in random order."""
        rng = np.random.RandomState(seed)
        y, component = self.raw_sample(n, rng)
        order = rng.permutation(len(y))
        x = (y[order] - np.asarray(self.shift)) / self.scale
        return torch.from_numpy(x).float(), torch.from_numpy(component[order]).long()

    def log_prob(self, x: Tensor, batch_size: int = 250) -> Tensor:
        """Log density of points in model space: (n, 2) to (n,) float64, −inf outside the support."""
        y = x.double().cpu() * self.scale + torch.tensor(self.shift, dtype=torch.float64)
        return torch.cat([self.raw_log_prob(part) for part in y.split(batch_size)]) + 2 * math.log(self.scale)


def mixture_log_prob(y: Tensor, centres: Tensor, noise: float) -> Tensor:
    """Log density of the equal mixture of N(centre, noise² I): y (n, 2), centres (m, 2) → (n,)."""
    square = torch.cdist(y, centres, compute_mode="donot_use_mm_for_euclid_dist").square()
    kernel = -square / (2 * noise**2) - math.log(2 * math.pi * noise**2)
    return torch.logsumexp(kernel, dim=1) - math.log(len(centres))


class Curve(Distribution):
    """Gaussian noise around curves; each component is the image of uniform t in [0, 1]."""

    def curve(self, component: int, t: np.ndarray) -> np.ndarray:
        """Points of the noiseless curve: t (m,) in [0, 1] to (m, 2)."""
        raise NotImplementedError

    def raw_sample(self, n: int, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
        """Components in turn, t uniform, then the noise."""
        component = np.arange(n) % self.components
        t = rng.rand(n)
        points = np.stack([self.curve(c, t) for c in range(self.components)])[component, np.arange(n)]
        return points + self.noise * rng.randn(n, 2), component

    def raw_log_prob(self, y: Tensor) -> Tensor:
        """The average of the noise's density over midpoints of each curve, on average noise/4 apart."""
        fine = self.curve(0, np.linspace(0, 1, 1000))
        length = np.linalg.norm(np.diff(fine, axis=0), axis=1).sum()
        m = int(np.clip(4 * length / self.noise, 200, 20000))
        t = (np.arange(m) + 0.5) / m
        centres = np.concatenate([self.curve(c, t) for c in range(self.components)])
        return mixture_log_prob(y, torch.from_numpy(centres), self.noise)


class TwoMoons(Curve):
    """Two interleaved half circles (scikit-learn's `make_moons`)."""

    components, noise, shift, scale = 2, 0.05, (0.5, 0.25), 1.25

    def raw_sample(self, n: int, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
        """scikit-learn's generator."""
        from sklearn.datasets import make_moons

        return make_moons(n, noise=self.noise, random_state=rng)

    def curve(self, component: int, t: np.ndarray) -> np.ndarray:
        """The upper and the lower half circle."""
        x, y = np.cos(np.pi * t), np.sin(np.pi * t)
        return np.stack([x, y] if component == 0 else [1 - x, 0.5 - y], axis=1)


class Circles(Curve):
    """Two rings, the inner of half the radius (scikit-learn's `make_circles`)."""

    components, noise = 2, 0.04

    def raw_sample(self, n: int, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
        """scikit-learn's generator."""
        from sklearn.datasets import make_circles

        return make_circles(n, noise=self.noise, factor=0.5, random_state=rng)

    def curve(self, component: int, t: np.ndarray) -> np.ndarray:
        """The outer and the inner ring."""
        radius = 1.0 if component == 0 else 0.5
        return radius * np.stack([np.cos(2 * np.pi * t), np.sin(2 * np.pi * t)], axis=1)


class Spirals(Curve):
    """Two arms of an Archimedean spiral, one and a half turns each, with equal mass per length (nearly)."""

    components, noise = 2, 0.02

    def curve(self, component: int, t: np.ndarray) -> np.ndarray:
        """Radius √t, angle 3π√t; the second arm is the first turned by π."""
        radius, angle = np.sqrt(t), 3 * np.pi * np.sqrt(t) + np.pi * component
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


class EightGaussians(Distribution):
    """Eight Gaussians on a circle (scikit-learn's `make_blobs`)."""

    components, noise = 8, 0.08

    @property
    def centres(self) -> np.ndarray:
        """(8, 2), on the circle of radius 0.8."""
        angle = np.arange(8) * np.pi / 4
        return 0.8 * np.stack([np.cos(angle), np.sin(angle)], axis=1)

    def raw_sample(self, n: int, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
        """scikit-learn's generator."""
        from sklearn.datasets import make_blobs

        return make_blobs(n, centers=self.centres, cluster_std=self.noise, random_state=rng)[:2]

    def raw_log_prob(self, y: Tensor) -> Tensor:
        """The mixture's own density."""
        return mixture_log_prob(y, torch.from_numpy(self.centres), self.noise)


class Checkerboard(Distribution):
    """Uniform on the eight dark squares of a 4×4 board over [−1, 1]². It has no noise to set."""

    components = 8

    def raw_sample(self, n: int, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
        """Square in turn, then uniform inside it."""
        component = np.arange(n) % 8
        row = component // 2
        column = 2 * (component % 2) + row % 2
        return (np.stack([column, row], axis=1) + rng.rand(n, 2)) / 2 - 1, component

    def raw_log_prob(self, y: Tensor) -> Tensor:
        """−log 2 (eight squares of area 1/4), −inf elsewhere."""
        square = ((y + 1) * 2).floor()
        inside = (square >= 0).all(1) & (square < 4).all(1) & (square.sum(1) % 2 == 0)
        return torch.where(inside, -math.log(2.0), -math.inf).double()


class Pinwheel(Distribution):
    """Five arms: a Gaussian off the centre, long radially, twisted by an angle that grows with the radius.

    After Johnson et al. 2016 (arXiv:1603.06277), with the twist a function of the radius alone: it then keeps
    areas, so the density of a point is that of the untwisted one.
    """

    components, noise = 5, 0.05
    length, offset, rate, scale = 0.2, 0.7, 1.5, 1.2

    def raw_sample(self, n: int, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
        """Draw the Gaussian arm, turn it to its place, twist."""
        component = np.arange(n) % 5
        arm = rng.randn(n, 2) * np.array([self.length, self.noise]) + np.array([self.offset, 0.0])
        angle = component * 2 * np.pi / 5 + self.rate * np.hypot(arm[:, 0], arm[:, 1])
        c, s = np.cos(angle), np.sin(angle)
        return np.stack([c * arm[:, 0] - s * arm[:, 1], s * arm[:, 0] + c * arm[:, 1]], axis=1), component

    def raw_log_prob(self, y: Tensor) -> Tensor:
        """Untwist, turn each arm back to the axis, and average the five Gaussians."""
        arms = torch.arange(5, dtype=torch.float64) * 2 * math.pi / 5
        angle = arms + self.rate * y.norm(dim=1, keepdim=True)  # (n, 5)
        along = angle.cos() * y[:, :1] + angle.sin() * y[:, 1:]
        across = angle.cos() * y[:, 1:] - angle.sin() * y[:, :1]
        square = ((along - self.offset) / self.length).square() + (across / self.noise).square()
        constant = math.log(2 * math.pi * self.length * self.noise * 5)
        return torch.logsumexp(-square / 2, dim=1) - constant


#: Each by its name in a configuration: `two_moons`.
DISTRIBUTIONS: dict[str, type[Distribution]] = {
    snake_case(name): c
    for name, c in list(globals().items())
    if isinstance(c, type) and issubclass(c, Distribution) and c not in (Distribution, Curve)
}
