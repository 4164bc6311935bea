"""What `--help` says of the choices in conf/ and in the folder that `--config-dir` adds, read there when it is asked.

In conf/hydra/help `${groups:metrics}` is a line for each group of the command, and `${choices:sampler}` one for each
choice of a group: its name, and the comment at the head of its file.
"""

import itertools
import string
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from flowdiff.commands.composition import compose_with_hydra
from flowdiff.errors import one_line
from flowdiff.model.vocabulary import files_of

WIDTH = 120


def print_help(words: Sequence[str], config_name: str, resolve: bool) -> None:
    """What Hydra prints for --help. It reads every group twice for its own list, most of two seconds, which no help
    text here shows.

    Args:
        words: of the command line.
        config_name: of conf/.
        resolve: show values in place of interpolations.
    """
    cfg = compose_with_hydra(words, config_name)
    HydraConfig.instance().set_config(cfg)
    template = string.Template(cfg.hydra.help.template)
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    print(template.substitute(CONFIG=OmegaConf.to_yaml(own, resolve=resolve)))


def describe_choices(group: str) -> str:
    """The choices of a group, each with what its file says of itself."""
    return _table({name: _head(file) for name, file in files_of(group).items()})


def list_groups(*several: str) -> str:
    """The groups of the command, each with the names of its choices.

    Args:
        several: the groups of which a list is chosen, which Hydra doesn't count among its choices.
    """
    groups = (group for group in HydraConfig.get().runtime.choices if not group.startswith("hydra"))
    return _table({group: ", ".join(files_of(group)) for group in sorted([*groups, *several])})


def _table(rows: Mapping[str, str]) -> str:
    """Names and what is said of them, in two columns; for `string.Template`, to which a single $ means something."""
    column = max(map(len, rows), default=0) + 4
    lines = (
        textwrap.fill(
            f"  {name:<{column - 2}}{said}".rstrip(), WIDTH, subsequent_indent=" " * column, break_on_hyphens=False
        )
        for name, said in rows.items()
    )
    return "\n".join(lines).replace("$", "$$")


def _head(file: Path) -> str:
    """The comment that a file begins with."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    head = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return one_line(" ".join(line.lstrip("#") for line in head if "@package" not in line))
