"""From noise to data: samplers, the noise they consume, and wrappers around the denoiser they call.

A sampler sees a denoiser only as ``D = denoiser(x, sigma, labels)`` (and ``denoiser.inverse`` for the
inversion samplers), never which one it is. See ``base`` for the contract.
"""

from flowdiff.samplers.ancestral import Ancestral, ancestral_step
from flowdiff.samplers.base import DenoiserLike, NoiseSource, Sampler, Step
from flowdiff.samplers.conditional import BlockMean, Conditioned, Known, Mask
from flowdiff.samplers.guidance import Clipped, Counted, Guided
from flowdiff.samplers.inversion import Inversion, InversionDenoise
from flowdiff.samplers.noise import IndexedNoise
from flowdiff.samplers.ode import Euler, Heun

__all__ = [
    "Ancestral",
    "BlockMean",
    "Clipped",
    "Conditioned",
    "Counted",
    "DenoiserLike",
    "Euler",
    "Guided",
    "Heun",
    "IndexedNoise",
    "Inversion",
    "InversionDenoise",
    "Known",
    "Mask",
    "NoiseSource",
    "Sampler",
    "Step",
    "ancestral_step",
]
