"""Metrics: one class each, measured on an ``Evaluand``."""

from flowdiff.metrics.base import Evaluand, Metric, Result, measure
from flowdiff.metrics.denoising import Denoising
from flowdiff.metrics.fidelity import FID, KID, InceptionScore, PrecisionRecall
from flowdiff.metrics.frechet import FrechetDistance, Recognised
from flowdiff.metrics.likelihood import BitsPerDim, LogLikelihood

__all__ = [
    "FID",
    "KID",
    "InceptionScore",
    "PrecisionRecall",
    "BitsPerDim",
    "Denoising",
    "Evaluand",
    "FrechetDistance",
    "LogLikelihood",
    "Metric",
    "Recognised",
    "Result",
    "measure",
]
