"""How the extractors that ship with the package were made.

    python -m experiments.extractors dataset=digits [output=FOLDER] [epochs=200] [seed=0]

Cross-entropy with label smoothing 0.05, AdamW, cosine decay, small random shifts, rotations and zooms. The
file keeps the command, the test accuracy and the versions in its metadata; the sha256 that it prints is the
one to pin in metrics/extractors/extractor.py.
"""

import hashlib
import math
import os
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from flowdiff.data.base import ImageData
from flowdiff.data.digits import Digits
from flowdiff.data.mnist import MNIST, FashionMNIST
from flowdiff.errors import ConfigError
from flowdiff.metrics.extractors.extractor import NETWORKS

EPOCHS = {"digits": 300, "mnist": 6, "fashion_mnist": 8}


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random rotation (σ = 6°), zoom (σ = 5 %) and shift (σ = 4 % of the width): float bytes (N, C, H, W) →
    the same.
    """
    n = len(images)
    angle, zoom = torch.randn(2, n, generator=generator)
    angle, zoom = angle * math.radians(6), 1 + 0.05 * zoom
    shift = 0.08 * torch.randn(n, 2, 1, generator=generator)
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(n, 2, 2)
    matrix = torch.cat([rotation * zoom.view(n, 1, 1), shift], dim=2)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of uint8 images (N, C, H, W) whose largest logit is their label."""
    network.eval()
    with torch.no_grad():
        logits = torch.cat([network(part)[1] for part in images.split(500)])
    return (logits.argmax(1) == labels).float().mean().item()


def fit(network: nn.Module, images: Tensor, labels: Tensor, epochs: int, seed: int, batch_size: int = 100) -> None:
    """Train in place on uint8 images (N, C, H, W) and labels (N,)."""
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * (len(images) // batch_size)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for epoch in range(epochs):
        network.train()
        total, start = 0.0, time.perf_counter()
        order = torch.randperm(len(images), generator=generator)
        for rows in order[: steps // epochs * batch_size].split(batch_size):
            batch = augment(images[rows].float(), generator)
            loss = F.cross_entropy(network(batch)[1], labels[rows], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        if epoch % max(1, epochs // 6) == 0 or epoch == epochs - 1:
            seconds = time.perf_counter() - start
            print(f"epoch {epoch + 1}/{epochs}: loss {total * epochs / steps:.4f}, {seconds:.1f} s", flush=True)


def open_data(name: str) -> ImageData:
    """The datasets that have an extractor."""
    root = os.environ.get("FLOWDIFF_DATA", "data")
    if name == "digits":
        return Digits()
    if name == "mnist":
        return MNIST(root)
    if name == "fashion_mnist":
        return FashionMNIST(root)
    raise ConfigError("dataset", name, f"must be one of {', '.join(EPOCHS)}")


def main() -> None:
    """Train, test, save."""
    options = dict(word.split("=", 1) for word in sys.argv[1:])
    name = options.get("dataset", "")
    data = open_data(name)
    seed, epochs = int(options.get("seed", 0)), int(options.get("epochs", EPOCHS[name]))
    assert data.extractor is not None
    torch.manual_seed(seed)
    network = NETWORKS[data.extractor](data.num_classes)
    (train, y_train), (val, y_val), (test, y_test) = (data.images(split) for split in ("train", "val", "test"))
    fit(network, data.levels_to_uint8(train), y_train, epochs, seed)
    report = {
        "command": f"python -m experiments.extractors dataset={name} epochs={epochs} seed={seed}",
        "test_accuracy": f"{accuracy(network, data.levels_to_uint8(test), y_test):.4f}",
        "val_accuracy": f"{accuracy(network, data.levels_to_uint8(val), y_val):.4f}",
        "torch": torch.__version__,
    }
    path = Path(options.get("output", ".")) / f"{data.extractor}.safetensors"
    content = save({key: value.contiguous() for key, value in network.state_dict().items()}, metadata=report)
    path.write_bytes(content)
    print(report)
    print(f"{path}: {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
