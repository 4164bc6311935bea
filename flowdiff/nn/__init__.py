"""Blocks of networks: embeddings, dropout, MLPs, convolutions, attention, U-Net blocks, Lipschitz layers, bounds."""

from flowdiff.nn.embeddings import Concat, Conditioning, FiLM, Unconditional

__all__ = ["Concat", "Conditioning", "FiLM", "Unconditional"]
