"""Datasets: integer images or toy points in memory, in fixed splits."""

from flowdiff.data.base import ImageData
from flowdiff.data.digits import Digits
from flowdiff.data.mnist import MNIST, FashionMNIST
from flowdiff.data.toy import Toy

__all__ = ["MNIST", "Digits", "FashionMNIST", "ImageData", "Toy"]
