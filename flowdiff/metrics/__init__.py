"""Metrics: one class each, measured on an `Evaluand`."""

from flowdiff.metrics.base import Evaluand, Metric, Result, measure
from flowdiff.metrics.classes import ClassPosterior
from flowdiff.metrics.cost import Cost
from flowdiff.metrics.denoising import Denoising
from flowdiff.metrics.derivatives import Conservative, FokkerPlanck
from flowdiff.metrics.fidelity import FID, KID, InceptionScore, PrecisionRecall
from flowdiff.metrics.frechet import FrechetDistance, Recognised
from flowdiff.metrics.implied import ImpliedBits
from flowdiff.metrics.likelihood import BitsPerDim, LogLikelihood, NLLBySigma
from flowdiff.metrics.ood import OODAuroc

__all__ = [
    "FID",
    "KID",
    "InceptionScore",
    "PrecisionRecall",
    "BitsPerDim",
    "ClassPosterior",
    "Conservative",
    "Cost",
    "Denoising",
    "Evaluand",
    "FokkerPlanck",
    "FrechetDistance",
    "ImpliedBits",
    "LogLikelihood",
    "Metric",
    "NLLBySigma",
    "OODAuroc",
    "Recognised",
    "Result",
    "measure",
]
