"""Small classifiers that ship with the package: features for Fréchet distances, labels for recognition."""

from flowdiff.metrics.extractors.extractor import SHA256, Extractor

__all__ = ["SHA256", "Extractor"]
