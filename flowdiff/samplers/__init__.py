"""From noise to data: samplers, the noise they consume, and wrappers around the denoiser they call.

A sampler sees a denoiser only as `D = denoiser(x, sigma, labels)` (and `denoiser.inverse` for those that
invert, `denoiser.score_and_log_prob` for those with a Metropolis test), never which one it is. See `base`
for the contract.
"""

from flowdiff.samplers.ancestral import Ancestral, Ddim, ancestral_step
from flowdiff.samplers.base import Sampler, Step, Walk
from flowdiff.samplers.conditional import BlockMean, Conditioned, Known, Mask
from flowdiff.samplers.corrected import Mala, Ula
from flowdiff.samplers.dpmpp_sde import DpmppSde
from flowdiff.samplers.inversion import Inversion, InversionDenoise
from flowdiff.samplers.mcmc import Mcmc
from flowdiff.samplers.multistep import Dpmpp2m, Dpmpp2mSde, Lms
from flowdiff.samplers.noise import IndexedNoise, NoiseSource
from flowdiff.samplers.ode import Euler, Heun, HeunStochastic
from flowdiff.samplers.schedules import Adaptive, Cosine, Geometric, Karras, Linear, Polyexponential, Schedule, Vp

__all__ = [
    "Adaptive",
    "Cosine",
    "Geometric",
    "Karras",
    "Linear",
    "Polyexponential",
    "Schedule",
    "Vp",
    "Ancestral",
    "BlockMean",
    "Conditioned",
    "Ddim",
    "Dpmpp2m",
    "Dpmpp2mSde",
    "DpmppSde",
    "Euler",
    "Heun",
    "HeunStochastic",
    "IndexedNoise",
    "Inversion",
    "InversionDenoise",
    "Known",
    "Lms",
    "Mala",
    "Mask",
    "Mcmc",
    "NoiseSource",
    "Sampler",
    "Step",
    "Ula",
    "Walk",
    "ancestral_step",
]
