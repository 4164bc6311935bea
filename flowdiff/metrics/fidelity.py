"""FID, KID, Inception Score and precision/recall, all by torch-fidelity.

Images reach it as in-memory uint8 datasets, 3×H×W for Inception; features of the training split are cached on
disk. Two
rules live here and nowhere else: gray to RGB (`rgb`) and the name of a cache entry (`cache_name`),
because torch-fidelity trusts a name blindly. Inception's weights are a file (`weights_path`) or are
downloaded by torch-fidelity.

    FID          Heusel et al. 2017, arXiv:1706.08500        KID  Bińkowski et al. 2018, arXiv:1801.01401
    IS           Salimans et al. 2016, arXiv:1606.03498      PRC  Kynkäänniemi et al. 2019, arXiv:1904.06991
"""

import hashlib
import logging
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.error import URLError

import numpy as np
import torch
from torch import Tensor

from flowdiff.errors import ConfigError, FlowdiffError, one_line
from flowdiff.files import require_file
from flowdiff.metrics.base import Evaluand, Metric, Result
from flowdiff.metrics.extractors.extractor import SHA256
from flowdiff.options import OUTSIDE, Count, Range, checked
from flowdiff.quantities import Better, Quantity

log = logging.getLogger(__name__)

INCEPTION = "inception-v3-compat"
FEW = 2048  # below this many images Inception's covariance is singular and FID mostly bias


def rgb(images: Tensor) -> Tensor:
    """uint8 images (N, 1 or 3, H, W) → (N, 3, H, W): gray is repeated."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def cache_name(images: Tensor, split: str, preprocessing: str, extractor: str) -> str:
    """The name of a cache entry: a hash of the images (N, C, H, W) themselves, split, preprocessing and
    extractor.
    """
    digest = hashlib.sha256(f"{tuple(images.shape)}|{split}|{preprocessing}|{extractor}".encode())
    digest.update(images.contiguous().numpy().tobytes())
    return f"flowdiff-{digest.hexdigest()[:32]}"


#: What numpy makes arrays of; it runs nothing.
ARRAYS: list[Any] = [
    np.ndarray,
    np.dtype,
    np.zeros(1).__reduce__()[0],
    np.float64(0).__reduce__()[0],
    *{type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.uint8)},
]


def check_tensors(key: str, path: str | Path) -> None:
    """Raise unless a file of torch's holds tensors, arrays and plain values alone: torch-fidelity would run the rest.

    Args:
        key: of the configuration, for the message.
        path: the file.
    """
    try:
        with torch.serialization.safe_globals(ARRAYS):
            torch.load(require_file(path), map_location="cpu", weights_only=True)
    except Exception as error:
        allowed = f"not a file of tensors, it is not read ({one_line(error, 120)})"
        raise ConfigError(key, path, allowed) from error


def quantities_of(key: str, better: Better) -> tuple[Quantity, Quantity]:
    """A number on Inception's features, and on those of a small extractor, whose name joins the key."""
    return tuple(Quantity(k, better=better, plotted=k, column=k) for k in (key, f"{key}_*"))  # type: ignore[return-value]


class Fidelity(Metric):
    """Base of the metrics that torch-fidelity computes.

    Args:
        num_samples: samples drawn; FID is usually reported on 50,000.
        extractor: "inception", or "small": the dataset's own extractor, whose name then joins the key of the
        result.
        weights_path: file with Inception's weights in torch-fidelity's format (a state dict); null downloads
        them.
        batch_size: images per pass through the extractor.
        num_reference: training images compared with; null is all of them.
        real: measure as many real images of the split, too.
        cache_root: folder of cached features; null is torch-fidelity's default.
    """

    key: str  # in metrics.json
    option: str  # torch-fidelity's switch
    binary = True  # compares with a reference
    minimum = 2  # samples without which it is not defined

    @checked
    def __init__(
        self,
        num_samples: Annotated[int, Range(2, 10000000)] = 10000,
        extractor: Literal["inception", "small"] = "inception",
        weights_path: Annotated[str | None, OUTSIDE] = None,
        batch_size: Count = 64,
        num_reference: Count | None = None,
        real: bool = True,
        cache_root: Annotated[str | None, OUTSIDE] = None,
    ) -> None:
        if num_samples < self.minimum:
            allowed = f"must be a whole number from {self.minimum} up"
            raise ConfigError("num_samples", num_samples, allowed)
        if extractor == "inception" and weights_path is not None and not Path(weights_path).is_file():
            allowed = "there is no such file; give Inception's weights in torch-fidelity's format"
            raise ConfigError("weights_path", weights_path, allowed)
        self.num_samples = num_samples
        self.extractor = extractor
        self.weights_path = weights_path
        self.batch_size = batch_size
        self.num_reference = num_reference
        self.real = real
        self.cache_root = cache_root
        self.fetches = extractor == "inception" and weights_path is None

    def unfit(self, model: Evaluand) -> str | None:
        """Needs images and a sampler."""
        if not model.data.has_images:
            return "points are not images"
        if model.sample is None:
            return "no sampler"
        if self.extractor == "small" and model.data.extractor is None:
            return f"no small extractor for dataset={model.data.name}"
        return None

    def suffix(self, model: Evaluand) -> str:
        """What joins the keys."""
        return "" if self.extractor == "inception" else f"_{self.extractor_name(model)}"

    def keys(self, model: Evaluand) -> list[str]:
        """With the extractor's name, if it is a small one."""
        return [key + self.suffix(model) for key in super().keys(model)]

    def num_needed(self, model: Evaluand) -> int:
        """`num_samples`."""
        return self.num_samples

    def extractor_name(self, model: Evaluand) -> str:
        """The name that the extractor is registered under."""
        return INCEPTION if self.extractor == "inception" else str(model.data.extractor)

    def extractor_version(self, model: Evaluand) -> str:
        """The extractor and its weights, for cache names and for the record."""
        name = self.extractor_name(model)
        if name != INCEPTION:
            return f"{name}:{SHA256[name]}"
        if self.weights_path is None:
            return f"{name}:torch-fidelity"
        return f"{name}:{hashlib.sha256(Path(self.weights_path).read_bytes()).hexdigest()}"

    def prepare(self, model: Evaluand, images: Tensor) -> Tensor:
        """uint8 images (N, C, H, W) as the extractor wants them."""
        return rgb(images) if self.extractor == "inception" else images

    def compute(self, model: Evaluand, images: Tensor, reference: Tensor | None) -> dict[str, float]:
        """torch-fidelity's numbers for uint8 images (N, C, H, W) against a reference (M, C, H, W)."""
        from flowdiff.metrics.torch_fidelity_adapter import calculate  # heavy

        name = self.extractor_name(model)
        if name == INCEPTION and self.weights_path is not None:
            check_tensors(f"metrics.{self.key}.weights_path", self.weights_path)
        options = self.more(len(images), len(reference) if reference is not None else 0)
        if name == INCEPTION:
            options["feature_extractor_weights_path"] = self.weights_path
        if self.cache_root is not None:
            options["cache_root"] = self.cache_root
            for file in sorted(Path(self.cache_root).rglob("flowdiff-*")):
                check_tensors(f"metrics.{self.key}.cache_root", file)
        if reference is not None:
            preprocessing = "rgb" if self.extractor == "inception" else "as it is"
            options["input2_cache_name"] = cache_name(reference, "train", preprocessing, self.extractor_version(model))
            reference = self.prepare(model, reference)
        options |= {"cuda": torch.device(model.device).type == "cuda", "batch_size": self.batch_size}
        try:
            return calculate(self.option, name, self.prepare(model, images), reference, **options)
        except URLError as error:
            raise FlowdiffError(
                f"metrics.{self.key}.weights_path=null: Inception's weights could not be downloaded "
                f"({error.reason}); give their file as weights_path, or take metrics=[fd] or "
                f"metrics.{self.key}.extractor=small"
            ) from error
        except RuntimeError as error:
            if self.weights_path is not None and "state_dict" in str(error):
                allowed = "this file does not hold Inception's weights in torch-fidelity's format"
                raise ConfigError(f"metrics.{self.key}.weights_path", self.weights_path, allowed) from error
            raise

    def more(self, n: int, n_reference: int) -> dict[str, Any]:
        """Further options of torch-fidelity for `n` images against `n_reference`."""
        return {}

    def read(self, numbers: dict[str, float]) -> dict[str, tuple[float, dict[str, float]]]:
        """torch-fidelity's numbers → {key: (value, more conditions)}."""
        raise NotImplementedError

    def __call__(self, model: Evaluand) -> dict[str, Result]:
        """Keys as the class says, with `_<extractor>` behind them for a small extractor; `…/real` for
        real images.
        """
        n = self.num_samples
        images, _, broken = model.sample_images(n)
        train = model.data.images("train")[0]
        if self.num_reference is not None and self.num_reference < len(train):
            order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
            train = train[order[: self.num_reference].sort().values]
        reference = model.data.levels_to_uint8(train) if self.binary else None
        common = model.conditions(extractor=self.extractor_version(model))
        if reference is not None:
            common |= {"reference": "train", "n_reference": len(reference)}
        if self.extractor == "inception" and n < FEW:
            log.warning("%s of %d images: fewer than %d, compare it only with the same n", self.key, n, FEW)
            common["note"] = f"fewer than {FEW} images"
        suffix, results = self.suffix(model), {}
        for key, (value, more) in self.read(self.compute(model, images, reference)).items():
            conditions = common | model.sample_conditions | more | {"nonfinite": broken}
            results[key + suffix] = Result(value, n, conditions)
        if self.real:
            k = model.real(n)[0]
            if len(k) >= self.minimum:
                numbers = self.compute(model, model.data.levels_to_uint8(k), reference)
                for key, (value, more) in self.read(numbers).items():
                    results[f"{key}{suffix}/real"] = Result(value, len(k), common | more)
        return results


class FID(Fidelity):
    """Fréchet Inception distance to the training split: key `fid`."""

    key, option = "fid", "fid"
    quantities = quantities_of("fid", "lower")

    def read(self, numbers: dict[str, float]) -> dict[str, tuple[float, dict[str, float]]]:
        """The distance."""
        return {"fid": (numbers["frechet_inception_distance"], {})}


class KID(Fidelity):
    """Kernel Inception distance (cubic kernel, subsets of at most 1,000): key `kid`."""

    key, option = "kid", "kid"
    quantities = quantities_of("kid", "lower")

    def more(self, n: int, n_reference: int) -> dict[str, Any]:
        """Subsets no larger than the data."""
        return {"kid_subset_size": min(1000, n, n_reference)}

    def read(self, numbers: dict[str, float]) -> dict[str, tuple[float, dict[str, float]]]:
        """Mean over subsets, with their standard deviation."""
        return {
            "kid": (
                numbers["kernel_inception_distance_mean"],
                {"standard_deviation": numbers["kernel_inception_distance_std"]},
            )
        }


class InceptionScore(Fidelity):
    """Inception Score in ten parts: key `isc`."""

    key, option, binary, minimum = "isc", "isc", False, 10
    quantities = quantities_of("isc", "higher")

    def read(self, numbers: dict[str, float]) -> dict[str, tuple[float, dict[str, float]]]:
        """Mean over the parts, with their standard deviation."""
        return {
            "isc": (
                numbers["inception_score_mean"],
                {"standard_deviation": numbers["inception_score_std"]},
            )
        }


class PrecisionRecall(Fidelity):
    """Precision and recall with balls to the third neighbour: keys `precision` and `recall`."""

    key, option, minimum = "prc", "prc", 5
    quantities = (*quantities_of("precision", "higher"), *quantities_of("recall", "higher"))

    def read(self, numbers: dict[str, float]) -> dict[str, tuple[float, dict[str, float]]]:
        """Both numbers."""
        return {"precision": (numbers["precision"], {}), "recall": (numbers["recall"], {})}
