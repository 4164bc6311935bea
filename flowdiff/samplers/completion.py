"""Completions of images of which a part is known, in batches: `samplers.conditional` for many images.

Completion i is a function of its seed, its label and its image: neither the batch size nor its neighbours matter.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flowdiff.denoisers.wrappers import Denoise
from flowdiff.errors import ConfigError, at_least
from flowdiff.samplers.ancestral import Ancestral
from flowdiff.samplers.base import NoiseSource
from flowdiff.samplers.batched import BatchedSampler
from flowdiff.samplers.conditional import Conditioned, Known


@dataclass
class Completed:
    """Images whose known part is as it was given.

    Attributes:
        x: (n, C, H, W) on the CPU.
        acceptance: (n, levels), the share of Langevin steps accepted at each level; no columns without a corrector.
    """

    x: Tensor
    acceptance: Tensor


NUM_STEPS = 64


def from_the_top(batched: BatchedSampler, num_steps: int | None = None) -> BatchedSampler:
    """A sampler that begins at sigma_max, where nothing of an image is decided yet.

    One that begins lower (`sigma_start`) begins with an image of its own, to which the known part would come too
    late: `NUM_STEPS` ancestral steps, or `num_steps`, take its place.
    """
    if batched.sampler.sigma_start is None:
        return batched
    return replace(batched, sampler=Ancestral(NUM_STEPS if num_steps is None else num_steps))


def complete(
    batched: BatchedSampler,
    known: Known,
    x0: Tensor,
    labels: Tensor | None,
    seeds: Tensor,
    n_corrector: int,
    quiet: bool = False,
    key: str = "n_corrector",
) -> Completed:
    """Draw the unknown part of each image given its known part.

    Args:
        batched: the sampler, its schedule, guidance and batch size, e.g. `from_the_top`.
        known: the projectors of the n images, on the CPU.
        x0: (n, C, H, W) on the CPU, in [-1, 1]; only their known part is looked at.
        labels: (n,) int64, or None.
        seeds: (n,) int64.
        n_corrector: Metropolis-adjusted Langevin steps at each noise level; 0: replacement alone, without a density.
        quiet: no progress.
        key: the option's name in an error.

    Raises:
        ConfigError: `n_corrector` is negative, or above 0 for a denoiser without a density.
    """
    denoiser = batched.denoiser
    if at_least(key, n_corrector, 0) and not denoiser.has_density:
        allowed = f"its test needs a density, and this {type(denoiser).__name__} has none: choose 0"
        raise ConfigError(key, n_corrector, allowed)
    sigmas = batched.sigmas()
    rates = torch.zeros(len(x0), len(sigmas) - 1 if n_corrector else 0)

    def walk(
        denoiser: Any, noise: NoiseSource, classes: Tensor | None, rows: Tensor, advance: Callable[[], None]
    ) -> Tensor:
        here = rows.cpu()
        images, given = x0[here].to(rows.device), known[here].to(rows.device)
        density = Denoise(denoiser, classes).score_and_log_prob
        correct = Conditioned(density, noise, given, images, n_corrector)
        x = batched.sampler(denoiser, noise, sigmas, classes, lambda _step: advance(), correct)
        if n_corrector:
            rates[here] = torch.stack(correct.acceptance, 1).float().cpu()
        return given.replace(x, images)

    x = batched.each(walk, labels, seeds, len(sigmas) - 1, quiet)
    return Completed(x, rates)
