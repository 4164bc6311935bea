"""Configurations composed by Hydra from conf/ and words, apart from the job that Hydra runs."""

from collections.abc import Sequence
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from flowdiff.model.vocabulary import config_dir, folders
from flowdiff.options import snake_case
from flowdiff.runs.words import assignment


def dataset_name(target: str) -> str:
    """The file in conf/dataset that names this class, or the class's own name: `digits`."""
    for file in sorted((config_dir() / "dataset").glob("*.yaml")):
        if OmegaConf.select(OmegaConf.load(file), "_target_") == target:
            return file.stem
    return snake_case(target.rpartition(".")[2])


OmegaConf.register_new_resolver("run_name", dataset_name, replace=True)


def compose(words: Sequence[str], config_name: str) -> DictConfig:
    """The configuration that the words of a command line lead to, whatever Hydra is doing otherwise.

    Args:
        words: `key=value`; choices are those of `model.vocabulary.folders`.
        config_name: of conf/.
    """
    return _compose(words, config_name, with_hydra=False)


def compose_with_hydra(words: Sequence[str], config_name: str) -> DictConfig:
    """The same with Hydra's own node, `hydra`."""
    return _compose(words, config_name, with_hydra=True)


def find_choices(words: Sequence[str], config_name: str) -> dict[str, str]:
    """The choice of each group that the words of a command line lead to, as `flow` to `coupling`."""
    return read_choices(compose_with_hydra(words, config_name).hydra)


def read_choices(hydra_cfg: Any) -> dict[str, str]:
    """The choice of each group that Hydra's own node says; groups without one are left out."""
    return {str(group): str(choice) for group, choice in hydra_cfg.runtime.choices.items() if choice is not None}


def _compose(words: Sequence[str], config_name: str, with_hydra: bool) -> DictConfig:
    if GlobalHydra.instance().is_initialized():
        return hydra.compose(config_name, overrides=list(words), return_hydra_config=with_hydra)
    places = [assignment("", f"file://{place}")[1:] for place in folders()[1:]]
    own = [f"hydra.searchpath=[{','.join(places)}]"] if places else []
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        return hydra.compose(config_name, overrides=[*own, *words], return_hydra_config=with_hydra)


def is_choice(override: Override) -> bool:
    """Whether it chooses from a group (`flow=linear`) instead of setting a key."""
    return bool(override.key_or_group) and any((folder / override.key_or_group).is_dir() for folder in folders())
