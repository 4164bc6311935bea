"""Likelihood: bits per dimension of images, nats of toy points against the entropy of their
distribution.

With x = 2(k + u)/L − 1 and u uniform on the bin, a density p of x has, in units of one level, the density
(2/L)^d p(x), so

    bits/dim = −(log p(x) / d) / ln 2 + log2(L/2),

an upper bound on the bits of the discrete model P(k) = ∫ p over the bin (Theis et al. 2016,
arXiv:1511.01844). The density is the model's at σ = sigma_min, in one pass. The uniform density on [−1, 1]^d
gives log2 L. At any other σ the density is one of noised data, in nats per dimension:

    nll(σ) = −E log p(x0 + σε; σ, c)/d.
"""

import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import torch
from torch import Tensor

from flowdiff.data.toy import Toy
from flowdiff.denoisers.base import Perturbation
from flowdiff.denoisers.compiled import Compiled
from flowdiff.metrics.base import Evaluand, Metric, Result
from flowdiff.options import Count, Length, Sigma, checked
from flowdiff.quantities import Quantity
from flowdiff.samplers.batched import fill_up

log = logging.getLogger(__name__)


def log_likelihood(
    model: Evaluand, x: Tensor, labels: Tensor, what: str, sigma: float | None = None, turn: int = 0, turns: int = 1
) -> Tensor:
    """log p(x; σ, labels) in nats: x (N, *shape), labels (N,) → (N,) float64 on the CPU, batch by batch.

    σ is sigma_min if not given; `turn` of `turns` is for the progress. Batches that are compiled are filled up to one
    size.
    """
    level = model.sigma_min if sigma is None else sigma
    parts = []
    with unbiased(model) as log_prob:
        for rows in model.slices(len(x), what, turn, turns):
            filled = fill_up(torch.arange(rows.start, rows.stop), model.rows_in_a_pass if model.compile else 1)
            nats = log_prob(x[filled].to(model.device), level, model.labels(labels[filled]))
            parts.append(nats[: rows.stop - rows.start].double().cpu())
    return torch.cat(parts)


def log_likelihood_of_classes(
    model: Evaluand, x: Tensor, what: str, sigma: float, turn: int = 0, turns: int = 1
) -> Tensor:
    """log p(x; σ, c) in nats for each of the K classes: x (N, *shape) → (N, K) float64 on the CPU."""
    k = model.denoiser.num_classes
    labels = [torch.full((len(x),), c) for c in range(k)]
    columns = [log_likelihood(model, x, labels[c], what, sigma, turn * k + c, turns * k) for c in range(k)]
    return torch.stack(columns, 1)


def standard_error(values: Tensor) -> float:
    """Of the mean of values (N,); 0 for a single one."""
    return values.std().item() / math.sqrt(len(values)) if len(values) > 1 else 0.0


def bits_per_dim(log_prob: Tensor, dims: int, levels: int) -> Tensor:
    """Nats of a density of x in [−1, 1]^dims to bits per dimension in units of one of `levels` levels. Same
    shape.
    """
    return -log_prob / (dims * math.log(2)) + math.log2(levels / 2)


def kind_of_log_det(model: Evaluand, standard_error: float) -> str:
    """How log p came about, for the record: exact or estimated. An estimate is also logged as one."""
    if getattr(model.denoiser, "exact", True):
        return "exact"
    log.info("the likelihood is an unbiased estimate (flow.exact_dim), its standard error %.2g", standard_error)
    return "estimated"


@contextmanager
def unbiased(model: Evaluand) -> Iterator[Callable[..., Tensor]]:
    """The model's log_prob, compiled where that is wanted. If its log-determinant is an estimate, then an unbiased one
    whose error is independent between the images, so that the standard error of a mean over them includes it. It
    depends on the seed only; the state of the global generator is restored.
    """
    if getattr(model.denoiser, "exact", True):
        yield Compiled(model.denoiser).log_prob if model.compile else model.denoiser.log_prob
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(model.seed)
        yield functools.partial(model.denoiser.log_prob, perturbation=Perturbation(probes="long"))


def no_likelihood(model: Evaluand) -> str | None:
    """Why the model has no likelihood, or None."""
    if not getattr(model.denoiser, "has_density", False):
        return "the denoiser has no density"
    if not getattr(model.denoiser, "normalized", False):
        return "the density of this flow is not normalised (activation.leak=0 or conditioning=concat)"
    return None


class BitsPerDim(Metric):
    """Bits per dimension on the whole split, with its standard error; the dequantisation noise is fixed by
    the seed.
    """

    quantities = (Quantity("bits_per_dim", "bits/dim", "lower", plotted="bits_per_dim", column="bits_per_dim"),)

    def unfit(self, model: Evaluand) -> str | None:
        """Needs a normalised density of integer images."""
        if model.data.levels is None:
            return "latents have no levels" if model.data.has_images else "points have no levels"
        return no_likelihood(model)

    def __call__(self, model: Evaluand) -> dict[str, Result]:
        """Key `bits_per_dim`."""
        levels = model.data.levels
        assert levels is not None
        k, labels = model.real()
        x = model.data.to_model(k, torch.Generator().manual_seed(model.seed))
        bits = bits_per_dim(log_likelihood(model, x, labels, "bits/dim"), math.prod(model.data.shape), levels)
        error = standard_error(bits)
        conditions = model.conditions(
            standard_error=error,
            log_det=kind_of_log_det(model, error),
            sigma=model.sigma_min,
            levels=levels,
            uniform=math.log2(levels),
        )
        return {"bits_per_dim": Result(bits.mean().item(), len(bits), conditions)}


class NLLBySigma(Metric):
    """Negative log-likelihood of noised data at several noise levels, in nats per dimension.

    Every level sees the same x0 and ε. At high noise it is that of the noise, ½ log(2πe(σ² + variance)), which the
    condition `noise` = ½ log(2πeσ²) is there to compare with.

    Args:
        sigmas: noise levels.
        num_images: rows of the split used; null is all of them.
    """

    quantities = (
        Quantity("nll_by_sigma/*", "nats/dim", "lower", plotted="nll_by_sigma/0.2", column="nll_by_sigma/0.2"),
    )

    @checked
    def __init__(self, sigmas: Annotated[Sequence[Sigma], Length(1, 100)], num_images: Count | None = None) -> None:
        self.sigmas = [float(sigma) for sigma in sigmas]
        self.num_images = num_images

    def unfit(self, model: Evaluand) -> str | None:
        """Needs a normalised density."""
        return no_likelihood(model)

    def keys(self, model: Evaluand) -> list[str]:
        """One for each noise level."""
        return [f"nll_by_sigma/{sigma:g}" for sigma in self.sigmas]

    def __call__(self, model: Evaluand) -> dict[str, Result]:
        """Keys `nll_by_sigma/<sigma>`."""
        x0, noise, labels = model.noised(self.num_images)
        results = {}
        for turn, sigma in enumerate(self.sigmas):
            x = x0 + sigma * noise
            nats = log_likelihood(model, x, labels, "nll by sigma", sigma, turn, len(self.sigmas))
            nll = -nats / math.prod(model.data.shape)
            conditions = model.conditions(
                standard_error=standard_error(nll),
                sigma=sigma,
                noise=0.5 * math.log(2 * math.pi * math.e * sigma**2),
            )
            results[f"nll_by_sigma/{sigma:g}"] = Result(nll.mean().item(), len(nll), conditions)
        return results


class LogLikelihood(Metric):
    """Mean log-likelihood of toy points, and its gap to the best possible: E[log p] + H, in nats; 0 is
    perfect.

    The data's density is known (`data.distributions`), so the entropy is estimated without a
    kernel or
    neighbours: H ≈ −mean log p_data over the same test points. Estimate and log-likelihood share their
    sampling noise, so the gap, −KL(data ‖ model) on average, is known better than either.
    """

    quantities = (
        Quantity("log_likelihood", "nats", "higher", plotted="log_likelihood"),
        Quantity("log_likelihood_gap", "nats", "higher", column="log_likelihood_gap"),
    )

    def unfit(self, model: Evaluand) -> str | None:
        """Needs toy data and a normalised density."""
        return no_likelihood(model) if isinstance(model.data, Toy) else "only toy data have a known density"

    def __call__(self, model: Evaluand) -> dict[str, Result]:
        """Keys `log_likelihood` and `log_likelihood_gap`."""
        assert isinstance(model.data, Toy)
        x, labels = model.real()
        model_log_prob = log_likelihood(model, x, labels, "log-likelihood")
        data_log_prob = model.data.log_prob(x)
        if model.denoiser.num_classes:  # p(x | c): the class is known, and the classes are equally frequent
            data_log_prob = data_log_prob + math.log(model.data.num_classes)
        gap = model_log_prob - data_log_prob
        n = len(x)
        error = standard_error(gap)
        conditions = model.conditions(
            log_det=kind_of_log_det(model, error),
            sigma=model.sigma_min,
            entropy=-data_log_prob.mean().item(),
        )
        return {
            "log_likelihood": Result(model_log_prob.mean().item(), n, conditions),
            "log_likelihood_gap": Result(gap.mean().item(), n, conditions | {"standard_error": error}),
        }
