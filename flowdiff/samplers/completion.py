"""Completions of images of which a part is known, in batches: `samplers.conditional` for many images.

Completion i is a function of its seed, its label and its image: neither the batch size nor its neighbours matter.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowdiff.denoisers.wrappers import Denoise
from flowdiff.errors import ConfigError, at_least
from flowdiff.samplers.ancestral import Ancestral
from flowdiff.samplers.batched import Batch, BatchedSampler, Drawn, seeds_from
from flowdiff.samplers.conditional import Conditioned, Known

NUM_STEPS = 64


@dataclass(frozen=True, eq=False)
class Completed:
    """m completions of each of n images, one image's after the other's; their known part is as it was given.

    Attributes:
        drawn: x (n·m, C, H, W), and how it was made.
        labels: (n·m,) int64, or None.
        seeds: (n·m,) int64.
        sigmas: (levels,), at which the sampler was held to what is known.
        acceptance: (n·m, levels), the share of Langevin steps accepted at each level; None without a corrector.
    """

    drawn: Drawn
    labels: Tensor | None
    seeds: Tensor
    sigmas: Tensor
    acceptance: Tensor | None


def first_seeds(seed: int, n: int, completions: int) -> Tensor:
    """The seed of the first completion of each of n images: (n,) int64. A random mask is a function of it."""
    return seeds_from(seed, n * completions)[::completions]


def complete(
    batched: BatchedSampler,
    known: Known,
    x0: Tensor,
    labels: Tensor | None,
    completions: int,
    seed: int,
    n_corrector: int,
    num_steps: int | None = None,
    quiet: bool = False,
    key: str = "n_corrector",
) -> Completed:
    """Draw the unknown part of each image given its known part.

    Args:
        batched: the sampler, its schedule, guidance and batch size. A sampler that begins at `sigma_start` begins with
            an image of its own, to which the known part would come too late: ancestral steps from sigma_max take its
            place.
        known: the projectors of the n images, on the CPU.
        x0: (n, C, H, W) on the CPU, in [-1, 1]; only their known part is looked at.
        labels: (n,) int64, or None.
        completions: m of each image; number c of image i has the seed `seed + i·m + c`.
        seed: of the first completion.
        n_corrector: Metropolis-adjusted Langevin steps at each noise level; 0: replacement alone, without a density.
        num_steps: of those ancestral steps; None: `NUM_STEPS`.
        quiet: no progress.
        key: the name of the option `n_corrector` in an error.

    Raises:
        ConfigError: `n_corrector` is negative, or above 0 for a denoiser without a density.
    """
    if at_least(key, n_corrector, 0) and not batched.denoiser.has_density:
        allowed = f"its test needs a density, and this {type(batched.denoiser).__name__} has none: choose 0"
        raise ConfigError(key, n_corrector, allowed)
    if batched.sampler.sigma_start is not None:
        batched = replace(batched, sampler=Ancestral(NUM_STEPS if num_steps is None else num_steps))
    each = torch.arange(len(x0)).repeat_interleave(completions)
    labels = None if labels is None else labels[each]
    seeds = seeds_from(seed, len(each))

    def sample(batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        rows = each[batch.rows]
        images, given = x0[rows].to(batch.device), known[rows].to(batch.device)
        density = Denoise(batch.denoiser, batch.labels).score_and_log_prob
        correct = Conditioned(density, batch.noise, given, images, n_corrector)
        x = given.replace(batch.sample(correct=correct), images)
        return x, {"acceptance": torch.stack(correct.acceptance, 1).float()} if n_corrector else {}

    drawn = batched.each(sample, labels, seeds, quiet=quiet)
    return Completed(drawn, labels, seeds, batched.sigmas()[:-1], drawn.more.get("acceptance"))
