"""What a kind of module does for a while, and then no longer: a mode is no part of a model's state."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def within(model: nn.Module, kind: type[nn.Module], **attributes: Any) -> Iterator[None]:
    """Within it, every module of this kind in `model` has these attributes; then those it had before."""
    before = [(m, {name: getattr(m, name) for name in attributes}) for m in model.modules() if isinstance(m, kind)]
    try:
        for module, _ in before:
            vars(module).update(attributes)
        yield
    finally:
        for module, old in before:
            vars(module).update(old)
