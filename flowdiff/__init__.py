"""flowdiff: diffusion models whose denoiser is a normalizing flow."""
