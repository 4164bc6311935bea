"""Loading and applying the extractors.

The weights lie beside this file as safetensors and their sha256 is pinned below: a number measured with
`mlp_digits` is comparable with every other number measured with `mlp_digits`. `python -m experiments.extractors
dataset=digits` (mnist, fashion_mnist) made them; its report stands in each file's metadata.
"""

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor

from flowdiff.errors import ConfigError, FlowdiffError
from flowdiff.metrics.extractors.networks import MLP, LeNet, Network

NETWORKS: dict[str, type[Network]] = {"mlp_digits": MLP, "lenet_mnist": LeNet, "lenet_fashion_mnist": LeNet}
SHA256 = {
    "mlp_digits": "8a89b15f00357fec9e6f2eb50c26fef0c9a8b31cb81f4a2a85bdc0ce2b3e4b02",
    "lenet_mnist": "91dcb79e0e866dc547405c9c5c1522e0d245c6b53df557f6611a94e752389118",
    "lenet_fashion_mnist": "3a18f6191ba293911cf0574b3a4e78dc780f0e935ebdc5e4c1a3f2d7dcf121d6",
}


class Extractor:
    """A frozen classifier in float32 on the CPU.

    Args:
        name: a key of `SHA256`.
        folder: where the weights lie; the package's own folder by default.
    """

    def __init__(self, name: str, folder: str | Path | None = None) -> None:
        if name not in NETWORKS:
            raise ConfigError("extractor", name, f"must be one of {', '.join(NETWORKS)}")
        path = Path(folder or Path(__file__).parent) / f"{name}.safetensors"
        if not path.exists():
            raise FlowdiffError(f"extractor={name}: its weights {path} are missing; reinstall flowdiff")
        data = path.read_bytes()
        self.name = name
        self.sha256 = hashlib.sha256(data).hexdigest()
        if self.sha256 != SHA256[name]:
            raise FlowdiffError(
                f"extractor={name}: {path} has sha256 {self.sha256[:12]}…, expected {SHA256[name][:12]}…; "
                "the file is damaged or was trained anew: reinstall flowdiff"
            )
        self.network = NETWORKS[name]().eval().requires_grad_(False)
        self.network.load_state_dict(load(data))

    @torch.no_grad()
    def __call__(self, images: Tensor, batch_size: int = 500) -> tuple[Tensor, Tensor]:
        """uint8 images (N, C, H, W) → features (N, F), logits (N, K), both float32 on the CPU."""
        if images.dtype != torch.uint8:
            raise TypeError(f"an extractor takes uint8 images, not {images.dtype}")
        parts = [self.network(part.cpu()) for part in images.split(batch_size)]
        return torch.cat([features for features, _ in parts]), torch.cat([logits for _, logits in parts])

    def features(self, images: Tensor) -> Tensor:
        """uint8 images (N, C, H, W) → features (N, F)."""
        return self(images)[0]

    def logits(self, images: Tensor) -> Tensor:
        """uint8 images (N, C, H, W) → logits (N, K)."""
        return self(images)[1]
