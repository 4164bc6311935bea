"""The words of a sweep: what they vary, and a folder's name that tells it."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

LONGEST = 60, 200  # characters of a value and of all of a name: file systems take 255 bytes


def varied(words: Iterable[str]) -> dict[str, list[str]]:
    """The keys of `lr=1e-3,1e-4`, `seed=range(3)` and the like, with their values; words of one value are left
    out."""
    found = {}
    for word in words:
        try:
            override = OverridesParser.create().parse_override(word)
        except OverrideParseException:  # an older dialect of optuna's
            continue
        if override.is_sweep_override():
            listed = override.is_discrete_sweep() and "glob(" not in word
            found[override.key_or_group] = list(override.sweep_string_iterator()) if listed else []
    return found


def values_of(words: Iterable[str]) -> dict[str, str]:
    """`["+a.b=1", "lr=2"]` is {"a.b": "1", "lr": "2"}."""
    return {key.lstrip("+~"): value for key, _, value in (word.partition("=") for word in words)}


def run_name(values: Mapping[str, str]) -> str:
    """`{"flow.n_flows": "1", "activation": "elu"}` is n_flows-1_activation-elu: no "=", ",", "[" or "/" in it.

    A key is said whole where another one ends alike.
    """
    ends = Counter(key.rpartition(".")[2] for key in values)
    parts = []
    for key, value in values.items():
        end = key.rpartition(".")[2]
        parts.append(f"{_clean(end if ends[end] == 1 else key)}-{_clean(value)[-LONGEST[0] :]}")
    return "_".join(parts)[: LONGEST[1]]


def _clean(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text.strip("[](){}'\" "))
