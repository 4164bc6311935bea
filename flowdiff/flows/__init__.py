"""Invertible maps whose log-determinant is known."""

from flowdiff.flows.autoregressive import AutoregressiveFlow
from flowdiff.flows.base import Composite, Flow
from flowdiff.flows.bases import Base, ClassMixture, Normal
from flowdiff.flows.context import Context
from flowdiff.flows.conv import ConvFlow
from flowdiff.flows.coupling import CouplingFlow
from flowdiff.flows.gated import GatedActivation
from flowdiff.flows.glow import GlowFlow
from flowdiff.flows.jet import JetFlow
from flowdiff.flows.linear import LinearFlow
from flowdiff.flows.pixelcnn import PixelCNNFlow
from flowdiff.flows.pixelcnn_coupling import PixelCNNCouplingFlow
from flowdiff.flows.residual import ResidualFlow
from flowdiff.flows.spectral import SpectralFlow
from flowdiff.flows.stack import Stack
from flowdiff.flows.transformer import TransformerFlow
from flowdiff.flows.zuko import ZukoFlow

__all__ = [
    "AutoregressiveFlow",
    "Base",
    "ClassMixture",
    "Composite",
    "Context",
    "ConvFlow",
    "CouplingFlow",
    "Flow",
    "GatedActivation",
    "GlowFlow",
    "JetFlow",
    "LinearFlow",
    "Normal",
    "PixelCNNCouplingFlow",
    "PixelCNNFlow",
    "ResidualFlow",
    "SpectralFlow",
    "Stack",
    "TransformerFlow",
    "ZukoFlow",
]
