"""Configurations composed by Hydra from conf/ and words, apart from the job that Hydra runs."""

from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from flowdiff.model.vocabulary import config_dir


def compose(words: Sequence[str], config_name: str, folder: str | Path | None = None) -> DictConfig:
    """A configuration of its own, whatever Hydra is doing otherwise.

    Args:
        words: of a command line.
        config_name: of conf/.
        folder: of configurations of the user's own; None: the one that Hydra's job was given, if there is one.
    """
    if GlobalHydra.instance().is_initialized():
        return hydra.compose(config_name, overrides=list(words))
    own = [] if folder is None else [f"hydra.searchpath=[file://{Path(folder).absolute()}]"]
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        return hydra.compose(config_name, overrides=[*own, *words])


def parse(overrides: Sequence[str]) -> list[Override]:
    """The words of a command line as Hydra reads them."""
    return OverridesParser.create().parse_overrides(list(overrides))


def is_choice(override: Override, config_dir: Path) -> bool:
    """Whether it chooses from a group (`flow=linear`) instead of setting a key."""
    return bool(override.key_or_group) and (config_dir / override.key_or_group).is_dir()


def choices(group: str, config_dir: Path) -> list[str]:
    """The names of the YAML files of a group."""
    return sorted(file.stem for file in (config_dir / group).glob("*.yaml"))
