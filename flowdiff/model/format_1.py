"""Checkpoints of format 1, which named classes by their files: read as if they named them by their packages.

Format 2 names a class by the package that exports it (`flowdiff.flows.CouplingFlow`), so that files can move.
"""

from collections.abc import Mapping
from typing import Any

NAMES = {
    "flowdiff.activations.ELU": "flowdiff.bijections.ELU",
    "flowdiff.activations.Identity": "flowdiff.bijections.Identity",
    "flowdiff.activations.LeakyReLU": "flowdiff.bijections.LeakyReLU",
    "flowdiff.activations.Softplus": "flowdiff.bijections.Softplus",
    "flowdiff.activations.Spline": "flowdiff.bijections.Spline",
    "flowdiff.activations.Swish": "flowdiff.bijections.Swish",
    "flowdiff.activations.Tanh": "flowdiff.bijections.Tanh",
    "flowdiff.augment.Affine": "flowdiff.objectives.Affine",
    "flowdiff.augment.Augmentation": "flowdiff.objectives.Augmentation",
    "flowdiff.autoencoder.Autoencoder": "flowdiff.training.Autoencoder",
    "flowdiff.diffusers_unets.UNet2D": "flowdiff.denoisers.UNet2D",
    "flowdiff.diffusers_unets.UNetSDXL": "flowdiff.denoisers.UNetSDXL",
    "flowdiff.edm.MLPDenoiser": "flowdiff.denoisers.MLPDenoiser",
    "flowdiff.embeddings.Concat": "flowdiff.nn.Concat",
    "flowdiff.embeddings.FiLM": "flowdiff.nn.FiLM",
    "flowdiff.embeddings.Unconditional": "flowdiff.nn.Unconditional",
    "flowdiff.first_stage.AutoencoderKL": "flowdiff.data.AutoencoderKL",
    "flowdiff.first_stage.Identity": "flowdiff.data.Identity",
    "flowdiff.flows.autoregressive.AutoregressiveFlow": "flowdiff.flows.AutoregressiveFlow",
    "flowdiff.flows.conv.ConvFlow": "flowdiff.flows.ConvFlow",
    "flowdiff.flows.coupling.CouplingFlow": "flowdiff.flows.CouplingFlow",
    "flowdiff.flows.glow.GlowFlow": "flowdiff.flows.GlowFlow",
    "flowdiff.flows.linear.LinearFlow": "flowdiff.flows.LinearFlow",
    "flowdiff.flows.pixelcnn.PixelCNNFlow": "flowdiff.flows.PixelCNNFlow",
    "flowdiff.flows.residual.ResidualFlow": "flowdiff.flows.ResidualFlow",
    "flowdiff.flows.spectral.SpectralFlow": "flowdiff.flows.SpectralFlow",
    "flowdiff.flows.stack.Stack": "flowdiff.flows.Stack",
    "flowdiff.flows.transformer.TransformerFlow": "flowdiff.flows.TransformerFlow",
    "flowdiff.flows.transforms.Affine": "flowdiff.bijections.AffineTransform",
    "flowdiff.flows.transforms.Spline": "flowdiff.bijections.SplineTransform",
    "flowdiff.flows.zuko.ZukoFlow": "flowdiff.flows.ZukoFlow",
    "flowdiff.losses.AnnealedMixture": "flowdiff.objectives.AnnealedMixture",
    "flowdiff.losses.Denoising": "flowdiff.objectives.Denoising",
    "flowdiff.losses.FokkerPlanck": "flowdiff.objectives.FokkerPlanck",
    "flowdiff.losses.Likelihood": "flowdiff.objectives.Likelihood",
    "flowdiff.losses.Mixture": "flowdiff.objectives.Mixture",
    "flowdiff.losses.Unweighted": "flowdiff.objectives.Unweighted",
    "flowdiff.noise.Fixed": "flowdiff.objectives.Fixed",
    "flowdiff.noise.LogNormal": "flowdiff.objectives.LogNormal",
    "flowdiff.noise.LogUniform": "flowdiff.objectives.LogUniform",
    "flowdiff.precondition.Annealed": "flowdiff.denoisers.Annealed",
    "flowdiff.precondition.Gaussian": "flowdiff.denoisers.Gaussian",
    "flowdiff.precondition.Gaussianised": "flowdiff.denoisers.Gaussianised",
    "flowdiff.precondition.Scalar": "flowdiff.denoisers.Scalar",
    "flowdiff.precondition.Standardized": "flowdiff.denoisers.Standardized",
    "flowdiff.schedules.Adaptive": "flowdiff.samplers.Adaptive",
    "flowdiff.schedules.Cosine": "flowdiff.samplers.Cosine",
    "flowdiff.schedules.Geometric": "flowdiff.samplers.Geometric",
    "flowdiff.schedules.Karras": "flowdiff.samplers.Karras",
    "flowdiff.schedules.Linear": "flowdiff.samplers.Linear",
    "flowdiff.schedules.Polyexponential": "flowdiff.samplers.Polyexponential",
    "flowdiff.schedules.Vp": "flowdiff.samplers.Vp",
    "flowdiff.sdxl.SDXL": "flowdiff.denoisers.SDXL",
    "flowdiff.unet.UNetDenoiser": "flowdiff.denoisers.UNetDenoiser",
    "flowdiff.callbacks.Checkpoints": "flowdiff.training.Checkpoints",
    "flowdiff.callbacks.EMA": "flowdiff.training.EMA",
    "flowdiff.callbacks.Scalars": "flowdiff.training.Scalars",
    "flowdiff.callbacks.TrainingProgress": "flowdiff.training.TrainingProgress",
    "flowdiff.grids.DenoisingGrid": "flowdiff.training.DenoisingGrid",
    "flowdiff.grids.Reconstructions": "flowdiff.training.Reconstructions",
    "flowdiff.grids.SampleGrid": "flowdiff.training.SampleGrid",
    "flowdiff.grids.ValidationMetrics": "flowdiff.training.ValidationMetrics",
    "flowdiff.loggers.CSVLogger": "flowdiff.training.CSVLogger",
    "flowdiff.loggers.TensorBoardLogger": "flowdiff.training.TensorBoardLogger",
    "flowdiff.loggers.wandb_logger": "flowdiff.training.wandb_logger",
}


def as_format_2(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The facts on a model with today's names; those of format 2 as they are."""
    if entry.get("format") != 1:
        return dict(entry)
    renamed = {name: _rename(entry[name]) for name in ("config", "source") if name in entry}
    return {**entry, **renamed, "format": 2}


def _rename(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _name(value) if key == "_target_" else _rename(value) for key, value in node.items()}
    return [_rename(value) for value in node] if isinstance(node, list | tuple) else node


def _name(value: Any) -> Any:
    return NAMES.get(value, value) if isinstance(value, str) else value
