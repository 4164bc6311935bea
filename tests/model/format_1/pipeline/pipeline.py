"""The class is part of the package flowdiff."""

from flowdiff.pipeline import FlowdiffPipeline
