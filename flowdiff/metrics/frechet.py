"""Fréchet distance and recognition on the small extractors that ship with the package.

    FD² = |μ1 − μ2|² + tr(Σ1 + Σ2 − 2 (Σ1 Σ2)^½)          (Heusel et al. 2017, arXiv:1706.08500)

with means and covariances of features. tr (Σ1Σ2)^½ is the sum of the square roots of the eigenvalues of the
symmetric Σ1^½ Σ2 Σ1^½, so nothing complex appears. The distance depends on n and on the extractor: both stand
beside the number, and so does the distance of as many real images. Inception's is called FID and lives in
`fidelity.py`.
"""

import math
from typing import Annotated

import torch
from torch import Tensor

from flowdiff.errors import ConfigError
from flowdiff.metrics.base import Evaluand, Metric, Result
from flowdiff.metrics.extractors.extractor import NETWORKS, Extractor
from flowdiff.options import Range, checked
from flowdiff.quantities import Quantity

Moments = tuple[Tensor, Tensor]


def moments(features: Tensor) -> Moments:
    """Mean (F,) and unbiased covariance (F, F) of features (N, F), in float64."""
    return features.double().mean(0), torch.cov(features.double().T)


def square_root(matrix: Tensor) -> Tensor:
    """The square root of a symmetric positive semidefinite matrix (F, F)."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def frechet_distance(moments1: Moments, moments2: Moments) -> float:
    """Squared Fréchet distance of two Gaussians given by mean (F,) and covariance (F, F), as FID is defined."""
    (mean1, cov1), (mean2, cov2) = moments1, moments2
    root = square_root(cov1)
    cross = torch.linalg.eigvalsh(root @ cov2 @ root).clamp(min=0).sqrt().sum()
    return float((mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * cross)


class SmallExtractorMetric(Metric):
    """Base of the metrics on samples and a small extractor.

    Args:
        num_samples: samples drawn; at most the split's size, so that real images can be measured at the same
        n.
        extractor: name of the extractor; null is the dataset's own.
    """

    @checked
    def __init__(self, num_samples: Annotated[int, Range(2, 10000000)] = 1000, extractor: str | None = None) -> None:
        if extractor is not None and extractor not in NETWORKS:
            raise ConfigError("extractor", extractor, f"must be one of {', '.join(NETWORKS)}")
        self.num_samples = num_samples
        self.extractor = extractor

    def unfit(self, model: Evaluand) -> str | None:
        """Needs a sampler and an extractor for the dataset."""
        if model.sample is None:
            return "no sampler"
        if self.extractor is None and model.data.extractor is None:
            return f"no small extractor for dataset={model.data.name} (fid takes Inception's weights)"
        return None

    def num_needed(self, model: Evaluand) -> int:
        """`num_samples`, at most the size of the split."""
        return min(self.num_samples, len(model.data.images(model.split)[1]))

    def make_extractor(self, model: Evaluand) -> Extractor:
        """The extractor, loaded and checked."""
        return Extractor(self.extractor or str(model.data.extractor))


class FrechetDistance(SmallExtractorMetric):
    """Fréchet distance of samples to the training split; beside it that of as many real images of the split."""

    quantities = (Quantity("fd_*", better="lower", plotted="fd_*", column="fd_*"),)
    _kept: tuple[Tensor, str, Moments] | None = None

    def keys(self, model: Evaluand) -> list[str]:
        """One, with the extractor's name."""
        return [f"fd_{self.extractor or model.data.extractor}"]

    def __call__(self, model: Evaluand) -> dict[str, Result]:
        """Keys `fd_<extractor>` and `fd_<extractor>/real`."""
        extractor, n = self.make_extractor(model), self.num_needed(model)
        images, _, broken = model.sample_images(n)
        train = model.data.images("train")[0]
        # the training split is the same at each validation: its moments are kept with the images they are of
        if self._kept is None or self._kept[0] is not train or self._kept[1] != extractor.name:
            features = extractor.features(model.data.levels_to_uint8(train))
            self._kept = (train, extractor.name, moments(features))
        reference = self._kept[2]
        real = extractor.features(model.data.levels_to_uint8(model.real(n)[0]))
        common = model.conditions(
            extractor=extractor.name,
            extractor_sha256=extractor.sha256,
            reference="train",
            n_reference=len(train),
        )
        key = f"fd_{extractor.name}"
        return {
            key: Result(
                frechet_distance(moments(extractor.features(images)), reference),
                n,
                common | model.sample_conditions | {"nonfinite": broken},
            ),
            f"{key}/real": Result(frechet_distance(moments(real), reference), n, common),
        }


class Recognised(SmallExtractorMetric):
    """Share of conditional samples that the extractor's classifier takes for their class, and of real images.

    It tells whether samples are of the class asked for, not whether they are good: a sample near the mean of its class
    is recognised too, and a whitening knows these means. On digits 93 % of the samples of the untrained default model
    are recognised (98 % with 10 sampling steps), 98 % of the trained one's, at Fréchet distances of 5.8, 6.2 and 1.9:
    read it beside that. The standard error is that of a share, √(p(1 − p)/n): of the samples alone, not of another
    training, and 0 where all or none are recognised.
    """

    quantities = (Quantity("recognised", better="higher", plotted="recognised", column="recognised"),)

    def unfit(self, model: Evaluand) -> str | None:
        """Needs a class-conditional model as well."""
        if not model.denoiser.num_classes:
            return "the model is unconditional"
        return super().unfit(model)

    def __call__(self, model: Evaluand) -> dict[str, Result]:
        """Keys `recognised` and `recognised/real`."""
        extractor, n = self.make_extractor(model), self.num_needed(model)
        images, labels, broken = model.sample_images(n)
        k, y = model.real(n)
        common = model.conditions(extractor=extractor.name, extractor_sha256=extractor.sha256)
        drawn = model.sample_conditions | {"nonfinite": broken}
        shares = {
            "recognised": (extractor.logits(images).argmax(1) == labels, drawn),
            "recognised/real": (extractor.logits(model.data.levels_to_uint8(k)).argmax(1) == y, {}),
        }
        results = {}
        for key, (hits, more) in shares.items():
            share = hits.double().mean().item()
            error = {"standard_error": math.sqrt(share * (1 - share) / n)}
            results[key] = Result(share, n, common | error | more)
        return results
