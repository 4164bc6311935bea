"""Where pipelines exported in format 1 look for their classes, and for those that diffusers reads them by."""

from diffusers import DiffusionPipeline, ModelMixin

from flowdiff.model.pipeline import FlowdiffDenoiser, FlowdiffPipeline

__all__ = ["DiffusionPipeline", "FlowdiffDenoiser", "FlowdiffPipeline", "ModelMixin"]
