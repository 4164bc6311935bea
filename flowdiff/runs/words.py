"""Words of a command line, written so that they can be typed again.

A value passes three readers, and each has its own quotes: the shell, Hydra's grammar, OmegaConf's interpolations.
"""

import re
import shlex
from collections.abc import Iterable
from os import PathLike

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

#: Backslashes that a reader would halve: in front of an interpolation; of a quote, or at the end.
INTERPOLATION, QUOTE = re.compile(r"(\\*)\$\{"), re.compile(r'(\\*)("|\Z)')


def assignment(key: str, value: str | PathLike[str]) -> str:
    """`key=value` as Hydra reads it, quoted where it has to be: `ckpt_path="/a b/x=y.ckpt"`."""
    text = str(value)
    plain = f"{key}={text}"
    try:
        override = OverridesParser.create().parse_override(plain)
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


def is_typed(key: str, words: Iterable[str]) -> bool:
    """Whether one of the words of a command line gives `key` a value."""
    return any(word.partition("=")[0].lstrip("+") == key for word in words)


def command(module: str, *words: str) -> str:
    """`python -m flowdiff.<module>` with words of a shell."""
    return " ".join([f"python -m flowdiff.{module}", *words])
