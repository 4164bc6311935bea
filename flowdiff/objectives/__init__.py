"""What is trained: losses, the distribution of σ, augmentation."""

from flowdiff.objectives.augmentation import Affine, Augmentation
from flowdiff.objectives.losses import AnnealedMixture, Denoising, FokkerPlanck, Likelihood, Loss, Mixture, Unweighted
from flowdiff.objectives.noise import Fixed, LogNormal, LogUniform, NoiseDistribution
from flowdiff.objectives.weighting import LearnedWeighting, Weighting

__all__ = [
    "Affine",
    "AnnealedMixture",
    "Augmentation",
    "Denoising",
    "Fixed",
    "FokkerPlanck",
    "LearnedWeighting",
    "Likelihood",
    "LogNormal",
    "LogUniform",
    "Loss",
    "Mixture",
    "NoiseDistribution",
    "Unweighted",
    "Weighting",
]
