"""k-diffusion's `sampling` module, which the tests compare with."""

from experiments.common.k_diffusion import load_sampling

sampling = load_sampling()
