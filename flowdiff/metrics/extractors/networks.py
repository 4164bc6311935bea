"""The networks of the extractors. Each maps uint8 images (N, C, H, W) to (features (N, F), logits (N, K)).

A byte b enters as b/127.5 − 1. Features are the activations before the last linear layer.
"""

from torch import Tensor, nn


class Network(nn.Module):
    """An extractor's network: `body` makes the features, `head` the logits."""

    body: nn.Module
    head: nn.Module

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (or already augmented float bytes) (N, C, H, W) → features (N, F), logits (N, K)."""
        features = self.body(images.float() / 127.5 - 1.0)
        return features, self.head(features)


class MLP(Network):
    """For 8×8 images: 64 → 256 → 64 features → classes."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 256), nn.GELU(), nn.Dropout(0.2), nn.Linear(256, 64), nn.GELU()
        )
        self.head = nn.Linear(64, num_classes)


class LeNet(Network):
    """For 28×28 gray images: LeNet-5 (LeCun et al. 1998) with max pooling, GELU and more channels; 84
    features.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 5),
            nn.GELU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 5),
            nn.GELU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(512, 120),
            nn.GELU(),
            nn.Dropout(0.2),
            nn.Linear(120, 84),
            nn.GELU(),
        )
        self.head = nn.Linear(84, num_classes)
