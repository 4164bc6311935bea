"""The YAML files of conf/, found by glob: a new choice is tested without being named here."""

from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf

CONF = Path(__file__).parents[2] / "conf"


def choices(group: str) -> list[str]:
    """The names of the choices of a configuration group."""
    names = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    assert names, f"conf/{group} is empty"
    return names


def node(group: str, name: str, **values: Any) -> dict[str, Any]:
    """One choice as a plain dict; `values` stand at the top level, where its interpolations look."""
    config = OmegaConf.create({**values, group: OmegaConf.load(CONF / group / f"{name}.yaml")})
    resolved = OmegaConf.to_container(config[group], resolve=True)
    assert isinstance(resolved, dict)
    return resolved


def build(group: str, name: str, **values: Any) -> Any:
    """One choice, instantiated."""
    return instantiate(node(group, name, **values), _convert_="all")
