"""Datasets: integer images or toy points in memory, in fixed splits."""

from flowdiff.data.base import ImageData
from flowdiff.data.cifar10 import CIFAR10
from flowdiff.data.digits import Digits
from flowdiff.data.images import ImageFolder
from flowdiff.data.mnist import MNIST, FashionMNIST
from flowdiff.data.patches import Patches
from flowdiff.data.toy import Toy

__all__ = ["CIFAR10", "MNIST", "Digits", "FashionMNIST", "ImageData", "ImageFolder", "Patches", "Toy"]
