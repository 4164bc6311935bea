"""torch-fidelity as `metrics.fidelity` calls it. Imported when something is measured: torchvision comes with it."""

from typing import Any

import torch_fidelity
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

from flowdiff.metrics.extractors.extractor import SHA256, Extractor


class Images(Dataset[Tensor]):
    """uint8 images (N, C, H, W) as torch-fidelity wants them: no tuples."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return self.images[i]


class SmallFeatures(FeatureExtractorBase):
    """One of `metrics.extractors` in torch-fidelity's clothes, registered under its own name."""

    def __init__(self, name: str, features_list: list[str], **kwargs: Any) -> None:
        super().__init__(name, features_list)
        self.network = Extractor(name).network

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """What the network gives."""
        return ("features", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Logits for the Inception Score, features for all else."""
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled() -> bool:
        """No need to."""
        return False

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """uint8 images (N, C, H, W) → the requested features."""
        features, logits = self.network(images)
        return tuple({"features": features, "logits": logits}[name] for name in self.features_list)


for _name in SHA256:
    if _name not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(_name, SmallFeatures)


def calculate(
    metric: str, extractor: str, images: Tensor, reference: Tensor | None, **options: Any
) -> dict[str, float]:
    """torch-fidelity's numbers.

    Args:
        metric: its switch: fid, kid, isc or prc.
        extractor: the name that it is registered under.
        images, reference: uint8 (N, C, H, W) and (M, C, H, W) as the extractor wants them; None: nothing to compare to.
        options: further ones of torch-fidelity.
    """
    kind = FEATURE_EXTRACTORS_REGISTRY[extractor]
    layer = kind.get_default_feature_layer_for_metric("fid" if metric == "prc" else metric)
    inputs = {"input1": Images(images)} | ({} if reference is None else {"input2": Images(reference)})
    found: dict[str, float] = torch_fidelity.calculate_metrics(
        **inputs,
        **{metric: True, f"feature_layer_{metric}": layer},
        feature_extractor=extractor,
        save_cpu_ram=True,
        verbose=False,
        **options,
    )
    return found
