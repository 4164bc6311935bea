"""Classes by the names that the configuration gives them: `InversionDenoise` is `inversion_denoise`."""

from types import ModuleType
from typing import TypeVar

from flowdiff.text import snake_case

T = TypeVar("T")


def classes_of(module: ModuleType, base: type[T]) -> dict[str, type[T]]:
    """The subclasses of `base` in a module, by name."""
    found = (c for c in vars(module).values() if isinstance(c, type) and issubclass(c, base) and c is not base)
    return {snake_case(c.__name__): c for c in found}
