"""How well a model denoises, as a multiple of a linear denoiser.

    denoising_ratio/σ = RMSE(D(x0 + σε; σ, c), x0) / RMSE(W(x0 + σε; σ, c), x0)

with x0 the dequantised test images, ε standard normal, and W the Gaussian Wiener filter of the training split
(`data.statistics`), which is told the class if the model is. Below 1 the model knows more of the data than the
means of the classes and the one covariance that W takes for all of them. Two ratios compare two models only if both are
told the class, or neither is: the condition `filter` says which.

    denoising_filter/σ = RMSE(W'(x0 + σε; σ, c), x0) / RMSE(W(x0 + σε; σ, c), x0)

with W' the filter with a covariance for each class (`metrics.class_filter`), which is linear for each class as
well: no row of the model's, but what its ratio has to be below to be better than it. It is left out for models that are
not told the class, and for data of more than 4,096 coordinates or very many classes.
"""

from collections.abc import Sequence
from typing import Annotated

import torch

from flowdiff.metrics import class_filter
from flowdiff.metrics.base import Evaluand, Metric, Result
from flowdiff.options import Count, Length, Sigma, checked
from flowdiff.quantities import Quantity

SIGMAS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Denoising(Metric):
    """The ratio at several noise levels; every level and every model sees the same x0 and ε.

    Args:
        sigmas: noise levels.
        num_images: rows of the split used; null is all of them.
    """

    quantities = (
        Quantity("denoising_ratio/*", better="lower", plotted="denoising_ratio/0.2", column="denoising_ratio/1"),
        Quantity("denoising_filter/*", better="lower", reference=True),
        # in their place where models with different filters are compared: `runs.job_folders.compare_by_rmse`
        Quantity("denoising_rmse/*", better="lower", plotted="denoising_rmse/0.2"),
        Quantity("denoising_filter_rmse/*", better="lower", reference=True),
    )

    @checked
    def __init__(
        self, sigmas: Annotated[Sequence[Sigma], Length(1, 100)] = SIGMAS, num_images: Count | None = 2000
    ) -> None:
        self.sigmas = [float(sigma) for sigma in sigmas]
        self.num_images = num_images

    def unfit(self, model: Evaluand) -> str | None:
        """Needs the statistics of the training split."""
        return "no statistics of the training split" if model.statistics is None else None

    def keys(self, model: Evaluand) -> list[str]:
        """One for each noise level, and as many of the other filter where there is one."""
        kinds = ("ratio", "filter") if class_filter.fits(model) else ("ratio",)
        return [f"denoising_{kind}/{sigma:g}" for kind in kinds for sigma in self.sigmas]

    def __call__(self, model: Evaluand) -> dict[str, Result]:
        """Keys `denoising_ratio/<sigma>` and `denoising_filter/<sigma>`, with both RMSEs among the conditions."""
        assert model.statistics is not None
        x0, noise, labels = model.noised(self.num_images)
        results = {}
        for turn, sigma in enumerate(self.sigmas):
            ours, linear = 0.0, 0.0
            for rows in model.slices(len(x0), "denoising", turn, len(self.sigmas)):
                clean = x0[rows].to(model.device)
                x = clean + sigma * noise[rows].to(model.device)
                levels = torch.full((len(x),), sigma, device=x.device)
                classes = model.labels(labels[rows])
                ours += (model.denoiser(x, levels, classes) - clean).double().square().sum().item()
                linear += (model.statistics.wiener(x, levels, classes) - clean).double().square().sum().item()
            rmse, wiener = (ours / x0.numel()) ** 0.5, (linear / x0.numel()) ** 0.5
            told = "of the class" if model.labels(labels) is not None else "of all classes"
            told += "" if model.statistics.eigenvectors is not None else ", of a diagonal covariance"
            conditions = model.conditions(sigma=sigma, rmse=rmse, rmse_wiener=wiener, filter=told)
            results[f"denoising_ratio/{sigma:g}"] = Result(rmse / wiener, len(x0), conditions)
        if class_filter.fits(model):
            found = class_filter.errors(model, x0, noise, labels, self.sigmas)
            for sigma, rmse in zip(self.sigmas, found, strict=True):
                beside = results[f"denoising_ratio/{sigma:g}"].conditions
                conditions = beside | {"rmse": rmse, "covariance": "of each class, shrunk"}
                value = rmse / beside["rmse_wiener"]
                results[f"denoising_filter/{sigma:g}"] = Result(value, len(x0), conditions)
        return results
