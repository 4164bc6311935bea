"""Classes by the names that the configuration gives them: ``InversionDenoise`` is ``inversion_denoise``."""

import re
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


def snake_case(name: str) -> str:
    """``TwoMoons`` to ``two_moons``, ``Dpmpp2mSde`` to ``dpmpp_2m_sde``."""
    return re.sub(r"(?<=.)([A-Z]|(?<!\d)\d)", r"_\1", name).lower()


def classes_of(module: ModuleType, base: type[T]) -> dict[str, type[T]]:
    """The subclasses of ``base`` in a module, by name."""
    found = (c for c in vars(module).values() if isinstance(c, type) and issubclass(c, base) and c is not base)
    return {snake_case(c.__name__): c for c in found}
