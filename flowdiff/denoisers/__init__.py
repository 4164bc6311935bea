"""Denoisers D(x, σ, labels): the score of a flow, free networks, and wrappers around them."""

from flowdiff.denoisers.base import Denoiser, Perturbation
from flowdiff.denoisers.diffusers_unets import UNet2D, UNetSDXL
from flowdiff.denoisers.free import FreeDenoiser, MLPDenoiser
from flowdiff.denoisers.precondition import Annealed, Gaussian, Gaussianised, Precondition, Scalar, Standardized
from flowdiff.denoisers.score_flow import ScoreFlow
from flowdiff.denoisers.sdxl import SDXL
from flowdiff.denoisers.unet import UNetDenoiser
from flowdiff.denoisers.unet_pretrained import PretrainedUNet2D
from flowdiff.denoisers.wrappers import Clipped, Counted, Denoise, Guided, Tiled

__all__ = [
    "Annealed",
    "Clipped",
    "Counted",
    "Denoise",
    "Denoiser",
    "FreeDenoiser",
    "Gaussian",
    "Gaussianised",
    "Guided",
    "MLPDenoiser",
    "Perturbation",
    "Precondition",
    "PretrainedUNet2D",
    "SDXL",
    "Scalar",
    "ScoreFlow",
    "Standardized",
    "Tiled",
    "UNet2D",
    "UNetDenoiser",
    "UNetSDXL",
]
