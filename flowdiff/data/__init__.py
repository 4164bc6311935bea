"""Datasets: integer images or toy points in memory, in fixed splits; their statistics and first stages."""

from flowdiff.data.base import ImageData
from flowdiff.data.cifar10 import CIFAR10
from flowdiff.data.digits import Digits
from flowdiff.data.emoji import Emoji
from flowdiff.data.first_stage import AutoencoderKL, FirstStage, Identity
from flowdiff.data.images import ImageFolder
from flowdiff.data.mnist import MNIST, FashionMNIST
from flowdiff.data.patches import Patches
from flowdiff.data.toy import Toy

__all__ = [
    "AutoencoderKL",
    "CIFAR10",
    "Digits",
    "Emoji",
    "FashionMNIST",
    "FirstStage",
    "Identity",
    "ImageData",
    "ImageFolder",
    "MNIST",
    "Patches",
    "Toy",
]
