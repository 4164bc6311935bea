"""Words of a command line: read by Hydra's grammar in one place, and written so that they can be typed again.

A value passes three readers, and each has its own quotes: the shell, Hydra's grammar, OmegaConf's interpolations.
"""

import functools
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

#: Backslashes that a reader would halve: in front of an interpolation; of a quote, or at the end.
INTERPOLATION, QUOTE = re.compile(r"(\\*)\$\{"), re.compile(r'(\\*)("|\Z)')
LONGEST = 60, 200  # characters of a value and of all of a name: file systems take 255 bytes
READ = 2000  # characters of a word that the grammar is asked about


@dataclass(frozen=True)
class Word:
    """A word of a command line.

    Attributes:
        key: of the configuration, or a group of conf/: `flow.n_flows` of `+flow.n_flows=3`.
        value: as it is typed.
        override: what Hydra's grammar makes of it; None: nothing, and key and value are what stands around the "=".
    """

    key: str
    value: str
    override: Override | None

    @property
    def is_deletion(self) -> bool:
        """Whether it takes the key away, as `~metrics.fd`."""
        return self.override is not None and self.override.is_delete()

    @property
    def swept(self) -> list[str] | None:
        """The values that it sweeps over, none where they can't be listed (an interval); None: it sweeps over none."""
        if self.override is None or not self.override.is_sweep_override():
            return None
        listed = self.override.is_discrete_sweep() and "glob(" not in self.value
        return list(self.override.sweep_string_iterator()) if listed else []


def parse(text: str) -> Override:
    """What Hydra's grammar makes of a word.

    Raises:
        HydraException: nothing.
    """
    return OverridesParser.create().parse_override(text)


@functools.lru_cache(maxsize=4096)
def read_word(text: str) -> Word:
    """A word; one that Hydra can't read stands for itself."""
    key, _, value = text.partition("=")
    try:
        override = parse(text) if len(text) <= READ else None
    except Exception:  # the grammar's, or of a function in it
        override = None
    return Word(key.lstrip("+~") if override is None else override.key_or_group, value, override)


def list_swept(words: Iterable[str]) -> dict[str, list[str]]:
    """The keys of `lr=1e-3,1e-4`, `seed=range(3)` and the like, with their values; words of one value are left out."""
    read = map(read_word, words)
    return {word.key: word.swept for word in read if word.swept is not None}


def values_of(words: Iterable[str]) -> dict[str, str]:
    """`["+a.b=1", "lr=2"]` is {"a.b": "1", "lr": "2"}."""
    return {word.key: word.value for word in map(read_word, words)}


def is_typed(key: str, words: Iterable[str]) -> bool:
    """Whether one of the words of a command line gives `key` a value."""
    return any(word.key == key and not word.is_deletion for word in map(read_word, words))


def assignment(key: str, value: str | PathLike[str]) -> str:
    """`key=value` as Hydra reads it, quoted where it has to be: `ckpt_path="/a b/x=y.ckpt"`."""
    text = str(value)
    plain = f"{key}={text}"
    try:
        override = parse(plain)
        if not override.is_sweep_override() and override.value() == text and "${" not in text:
            return plain
    except HydraException:
        pass
    text = INTERPOLATION.sub(lambda found: 2 * found[1] + r"\${", text)
    text = QUOTE.sub(lambda found: 2 * found[1] + (r"\"" if found[2] else ""), text)
    return f'{key}="{text}"'


def override(key: str, value: str | PathLike[str]) -> str:
    """The word of a shell that gives `key` this value: a command that holds it can be pasted."""
    return shlex.quote(assignment(key, value))


def command(module: str, *words: str) -> str:
    """`python -m flowdiff.<module>` with words of a shell."""
    return " ".join([f"python -m flowdiff.{module}", *words])


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
