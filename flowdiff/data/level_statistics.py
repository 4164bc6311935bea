r"""Statistics of integer levels too many to be floats at once, in one pass over blocks of rows.

With k' = k − L/2, an integer of at most 2⁷, the sums of k' and of k'k'ᵀ over 2¹⁰ rows are integers of at most 2²⁴,
which float32 adds without rounding; float64 adds the blocks'. In model space x = (2k + 1)/L − 1 is (2k' + 1)/L, so that
with n_c rows of class c and their sums s_c

    μ_c = (2 s_c/n_c + 1)/L,        Σ = (2/L)² (Σ k'k'ᵀ − Σ_c s_c s_cᵀ/n_c)/N,

which is what `data.statistics.DataStatistics.from_data` measures, to float64's rounding.
"""

import functools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from flowdiff.bijections.marginals import Marginals
from flowdiff.data.loader import Rows
from flowdiff.data.quantise import centres
from flowdiff.data.statistics import DataStatistics, Sample
from flowdiff.errors import FlowdiffError
from flowdiff.flows.context import MOST_DIM

EXACT = 1 << 10  # rows whose sums of squares float32 holds exactly
NUMBERS = 1 << 24  # of a block at most


class CentredRows:
    """Levels (N, …) as the centres of their bins (N, d), made when they are indexed."""

    def __init__(self, rows: Rows, levels: int) -> None:
        self.rows, self.levels = rows, levels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor) -> Tensor:
        """Rows of int64 (M,): (M, d) float32."""
        return centres(self.rows[index], self.levels).flatten(1)


def measure_levels(
    rows: Rows, shape: tuple[int, ...], labels: Tensor | None, num_classes: int, levels: int
) -> DataStatistics:
    """Moments of dequantised images.

    Args:
        rows: N images of levels (C, H, W).
        shape: (C, H, W).
        labels: (N,) in [0, K); None for data without classes.
        num_classes: K.
        levels: L.

    Raises:
        FlowdiffError: fewer than two images.
    """
    n, d, middle = len(rows), math.prod(shape), levels // 2
    if n < 2:
        raise FlowdiffError(f"the training split has {n} sample(s): statistics need at least 2")
    has_classes = labels is not None and num_classes > 0
    classes = labels if labels is not None and has_classes else torch.zeros(n, dtype=torch.int64)
    sizes = classes.bincount(minlength=max(1, num_classes)).double()
    sums = torch.zeros(len(sizes), d, dtype=torch.float64)
    squares = torch.zeros((d, d) if d <= MOST_DIM else (d,), dtype=torch.float64)
    for begin, block in _blocks(rows, d):
        k = block.float() - middle
        own = classes[begin : begin + len(k)]
        sums += torch.zeros(len(sizes), d).index_add_(0, own, k)
        squares += k.T @ k if d <= MOST_DIM else k.square().sum(0)

    unit, noise_variance = 2 / levels, (2 / levels) ** 2 / 12
    is_there = sizes > 0
    total, means = sums.sum(0), sums / sizes.clamp(min=1)[:, None]
    mean = total / n
    between = sums[is_there].T @ means[is_there] if d <= MOST_DIM else (sums * means).sum(0)
    within = (squares - between) / n * unit**2
    all_squares = float(squares.diagonal().sum() if d <= MOST_DIM else squares.sum())
    spread = (all_squares / (n * d) - float(mean.mean()) ** 2) * unit**2
    if d > MOST_DIM:
        eigenvalues, eigenvectors = within, None
    else:
        eigenvalues, eigenvectors = torch.linalg.eigh(within)
        eigenvalues, eigenvectors = eigenvalues.flip(0), eigenvectors.flip(1).float().contiguous()
    class_means = mean.repeat(num_classes + 1, 1)
    if has_classes:
        class_means[:-1][is_there] = means[is_there]
    centred, bin_width = CentredRows(rows, levels), 2 / levels
    return DataStatistics(
        class_means=(unit * (class_means + middle) + 1 / levels - 1).float(),
        eigenvalues=(eigenvalues.clamp(min=0) + noise_variance).float(),
        eigenvectors=eigenvectors,
        sigma_data=math.sqrt(spread + noise_variance),
        marginals=functools.partial(measure_marginals, rows, d, levels),
        sample=functools.partial(Sample.from_data, centred, classes if has_classes else None, num_classes, bin_width),
    )


def measure_marginals(rows: Rows, d: int, levels: int) -> Marginals:
    """The histogram of each coordinate, from how often it has each level."""
    counts, first = torch.zeros(d * levels, dtype=torch.int64), torch.arange(d) * levels
    for _, block in _blocks(rows, d):
        counts += (block.long() + first).flatten().bincount(minlength=d * levels)
    return Marginals.from_counts(centres(torch.arange(levels), levels), counts.reshape(d, levels), 2 / levels)


def _blocks(rows: Rows, d: int) -> Iterator[tuple[int, Tensor]]:
    """Row number and levels (B, d) of one block after the other."""
    size = max(1, min(EXACT, NUMBERS // d))
    for begin in range(0, len(rows), size):
        yield begin, rows[begin : begin + size].flatten(1)
