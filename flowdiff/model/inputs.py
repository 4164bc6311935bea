"""What a notebook hands to a model, held to what the model computes with: floats of its shape, σ > 0, classes it has.

Arrays, lists and numbers become tensors of the model's type on its device; results go back to those of x. What can't
be right (bytes for floats, one sample for a batch, NaN, a σ of 0, a class that there isn't) is an error in the words of
this package: torch's own come late or not at all, as a NaN.
"""

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowdiff.errors import ConfigError, FlowdiffError, at_least

Array = Tensor | np.ndarray[Any, Any]
Numbers = float | Sequence[float] | Array
Classes = int | str | Sequence[int | str] | Array | None


def as_samples(name: str, x: Any, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """`x` as (B, *shape) of the type and on the device of `like`.

    Args:
        name: what the caller's argument is called.
        x: a tensor or an array of floats.

    Raises:
        FlowdiffError: integers, another shape, a value that is not finite.
    """
    x = as_floats(name, x)
    wanted = f"(B, {', '.join(map(str, shape))})"
    if tuple(x.shape) == tuple(shape):
        raise FlowdiffError(
            f"{name} has the shape {tuple(x.shape)}: one sample; a batch of it is {name}[None], {wanted}"
        )
    if x.dim() != len(shape) + 1 or tuple(x.shape[1:]) != tuple(shape):
        raise FlowdiffError(f"{name} has the shape {tuple(x.shape)}, must be {wanted}")
    if not len(x):
        raise FlowdiffError(f"{name} has no row: its shape is {tuple(x.shape)}, must be {wanted} with B from 1 up")
    finite = x.detach().isfinite().flatten(1).all(1)
    if _holds(~finite):
        raise FlowdiffError(f"{name}[{int((~finite).nonzero()[0])}] holds a NaN or an infinity")
    return x.to(like)


def as_floats(name: str, x: Any) -> Tensor:
    """A tensor or array of floats as a tensor.

    Raises:
        FlowdiffError: it is something else.
    """
    if not isinstance(x, Tensor | np.ndarray):
        raise FlowdiffError(f"{name} is a {type(x).__name__}, must be a tensor or an array")
    found = torch.as_tensor(x)
    if not found.is_floating_point():
        hint = "; from_uint8 makes floats of bytes" if found.dtype == torch.uint8 else ""
        raise FlowdiffError(
            f"{name} holds {str(found.dtype).removeprefix('torch.')}, must hold floats in [-1, 1]{hint}"
        )
    return found


def as_sigma(sigma: Any, x: Tensor) -> Tensor:
    """σ as (B,) for x (B, …).

    Raises:
        FlowdiffError: neither one number nor B of them, or not finite and positive.
    """
    try:
        found = sigma if isinstance(sigma, Tensor) else torch.as_tensor(np.asarray(sigma))  # numbers in float64
    except (TypeError, ValueError, RuntimeError) as error:
        raise FlowdiffError(f"sigma={sigma!r}: must be a number above 0, or one for each sample") from error
    if found.dtype == torch.bool or found.is_complex() or found.dim() > 1 or found.numel() not in (1, len(x)):
        shown = f"has the shape {tuple(found.shape)}" if found.dim() else f"is {sigma!r}"
        raise FlowdiffError(f"sigma {shown}, must be a number above 0, or ({len(x)},): one for each sample")
    levels = found.to(x.dtype).to(x.device).reshape(-1).expand(len(x))
    wrong = ~(levels.isfinite() & (levels > 0))
    if _holds(wrong):
        raise FlowdiffError(f"sigma={float(levels[wrong][0]):g}: must be a finite number above 0")
    return levels


def as_labels(labels: Any, x: Tensor, num_classes: int, names: Sequence[str] | None) -> Tensor | None:
    """Classes as int64 (B,) in [0, K) for x (B, …); None: no class.

    Args:
        labels: a class for all, or one for each sample: a number, or a name in `names`.

    Raises:
        FlowdiffError: another number of them, not whole numbers, or no class of the model.
    """
    if labels is None:
        return None
    if not num_classes:
        raise FlowdiffError("labels were given, but the model is unconditional: leave them out")
    allowed = f"must be classes from 0 to {num_classes - 1}, one for all or one for each of {len(x)} samples"
    listed = [labels] if isinstance(labels, int | str | np.generic) else labels
    if not isinstance(listed, Tensor | np.ndarray):
        listed = [_class_of(label, names) for label in listed]
    try:
        found = torch.as_tensor(listed)
    except (TypeError, ValueError, RuntimeError) as error:
        raise FlowdiffError(f"labels={labels!r}: {allowed}") from error
    if found.dtype == torch.bool or found.is_floating_point() or found.is_complex():
        raise FlowdiffError(f"labels hold {str(found.dtype).removeprefix('torch.')}: {allowed}")
    if found.dim() > 1 or found.numel() not in (1, len(x)):
        raise FlowdiffError(f"labels have the shape {tuple(found.shape)}: {allowed}")
    found = found.to(x.device, torch.int64).reshape(-1)
    wrong = (found < 0) | (found >= num_classes)
    if _holds(wrong):
        raise FlowdiffError(f"class label {int(found[wrong][0])}: {allowed}")
    return found.expand(len(x))


def as_whole(name: str, value: Any, least: int) -> int:
    """A whole number of Python's or NumPy's, ≥ `least`, else a `ConfigError` that names it."""
    try:
        number = operator.index(value)
    except TypeError:
        raise ConfigError(name, value, f"must be a whole number from {least} up") from None
    return at_least(name, number, least)


def as_seeds(seeds: Iterable[int], n: int) -> Tensor:
    """n seeds as int64 (n,), else a `ConfigError`."""
    numbers = [as_whole("seeds", seed, 0) for seed in seeds]
    if len(numbers) != n or max(numbers, default=0) >= 2**32:
        raise ConfigError("seeds", numbers, f"must be {n} whole numbers from 0 to 2^32 - 1")
    return torch.tensor(numbers, dtype=torch.int64)


def _class_of(label: Any, names: Sequence[str] | None) -> Any:
    if not isinstance(label, str):
        return label
    if names is None or label not in names:
        raise FlowdiffError(f"labels={label}: no class of this name; there are {', '.join(names or ['none'])}")
    return list(names).index(label)


def _holds(wrong: Tensor) -> bool:
    """Whether one of them is true; where values can't be looked at (a captured graph, vmap) none is taken to be."""
    if torch.compiler.is_compiling():
        return False
    try:
        return bool(wrong.any())
    except RuntimeError:
        return False
