"""Where folders of diffusers that flowdiff exported before format 2 look for its pipeline."""

from flowdiff.model.pipeline import FlowdiffDenoiser, FlowdiffPipeline

__all__ = ["FlowdiffDenoiser", "FlowdiffPipeline"]
