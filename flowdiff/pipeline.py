"""Where pipelines that were exported in format 1 look for their classes, and for those of diffusers they are read by."""

from diffusers import DiffusionPipeline, ModelMixin

from flowdiff.model.pipeline import FlowdiffDenoiser, FlowdiffPipeline

__all__ = ["DiffusionPipeline", "FlowdiffDenoiser", "FlowdiffPipeline", "ModelMixin"]
