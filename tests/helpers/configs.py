"""The YAML files of conf/, found by glob: a new choice is tested without being named here."""

import copy
import functools
import re
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from flowdiff.model.vocabulary import config_dir

CONF = Path(__file__).parents[2] / "conf"
#: Words that say only where a file or folder is.
PLACE = re.compile(r"(?:run_dir|output_dir|ckpt_path)=/[\w./-]+")


def composed(name: str, *words: str) -> DictConfig:
    """conf/<name>.yaml with these words of a command line: composed once, whatever the folders are."""
    keys = [word.partition("=")[0] for word in words]
    places = [word for word in words if PLACE.fullmatch(word) and keys.count(word.partition("=")[0]) == 1]
    config = copy.deepcopy(_composed(name, *(word for word in words if word not in places)))
    for place in places:
        key, _, path = place.partition("=")
        config[key] = path
    return config


@functools.cache
def _composed(name: str, *words: str) -> DictConfig:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose(name, overrides=list(words))


def choices(group: str) -> list[str]:
    """The names of the choices of a configuration group."""
    names = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    assert names, f"conf/{group} is empty"
    return names


def node(group: str, name: str, **values: Any) -> dict[str, Any]:
    """One choice as a plain dict; `values` stand at the top level, where its interpolations look."""
    config = OmegaConf.create({"weighting": None, **values, group: OmegaConf.load(CONF / group / f"{name}.yaml")})
    resolved = OmegaConf.to_container(config[group], resolve=True)
    assert isinstance(resolved, dict)
    return resolved


def build(group: str, name: str, **values: Any) -> Any:
    """One choice, instantiated."""
    return instantiate(node(group, name, **values), _convert_="all")
