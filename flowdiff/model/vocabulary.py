"""The YAML files of conf/: where they are, and what they name.

A stored configuration may name what these files name and nothing else (`model.safe_construction`).
"""

import functools
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from flowdiff.errors import ConfigError
from flowdiff.options import snake_case

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_further: dict[Path, None] = {}  # in the order in which they were told
_said: dict[str, set[str]] = {}  # by group, the classes that the user has named without a file


def config_dir() -> Path:
    """The folder of configurations: `flowdiff/conf` when installed, `conf` beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    return Path(str(files("flowdiff.conf")))


def folders() -> tuple[Path, ...]:
    """`config_dir`, and the folders of the user's own that `add_folder` was told."""
    return tuple(dict.fromkeys((config_dir(), *_further)))


def add_folder(folder: str | os.PathLike[str]) -> None:
    """From now on stored configurations may name what the YAML files of this folder name: the user said it.

    Its classes are imported from the folder itself or from the folder that it is in, after all other places.

    Args:
        folder: laid out as conf/, one folder for a group.

    Raises:
        ConfigError: there is none.
    """
    place = Path(folder).expanduser().absolute()
    if not place.is_dir():
        raise ConfigError("config_dir", folder, "there is no such folder")
    _further.setdefault(place)
    sys.path += [str(root) for root in (place, place.parent) if str(root) not in sys.path]


def add_classes(config: Mapping[str, Any]) -> None:
    """From now on in this process, stored configurations may name the classes of this one, each in its group.

    Args:
        config: nodes by group, which the user has typed, or whose objects they have made.
    """
    for group, node in config.items():
        _said.setdefault(group, set()).update(_targets(node))


@dataclass(frozen=True)
class Vocabulary:
    """What the YAML files of some folders say.

    Attributes:
        targets: by group, each `_target_` in its files and in those of the groups that they refer to.
        interpolations: every text with `${`.
    """

    targets: Mapping[str, frozenset[str]]
    interpolations: frozenset[str]


def vocabulary() -> Vocabulary:
    """Of `folders`, and of what `add_classes` was told."""
    found = _vocabulary(folders())
    said = {group: found.targets.get(group, frozenset()) | targets for group, targets in _said.items()}
    return Vocabulary({**found.targets, **said}, found.interpolations)


@functools.lru_cache(maxsize=8)
def _vocabulary(places: tuple[Path, ...]) -> Vocabulary:
    named: dict[str, set[str]] = {}
    uses: dict[str, set[str]] = {}
    interpolations: set[str] = set()
    for place in places:
        for file in sorted(place.rglob("*.yaml")):
            content = content_of(file)
            group = file.relative_to(place).parts[0] if file.parent != place else ""
            for key, value in content.items() if isinstance(content, Mapping) else ():
                at = key if group in ("", "experiment", "debug") else group  # those set keys of the whole
                for inner in _texts(value if at == key else {key: value}):
                    interpolations |= {inner} if "${" in inner else set()
                    uses.setdefault(at, set()).update(_groups(inner, places))
                for target in _targets(value if at == key else {key: value}):
                    named.setdefault(at, set()).add(target)
    return Vocabulary({group: frozenset(_close_over(group, named, uses)) for group in named}, frozenset(interpolations))


def content_of(file: Path) -> Any:
    """One of these files as plain values; None if it can't be read."""
    try:
        return yaml.load(file.read_text(encoding="utf-8"), Loader)
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _close_over(group: str, named: Mapping[str, set[str]], uses: Mapping[str, set[str]]) -> set[str]:
    seen, found, waiting = set(), set(), [group]
    while waiting:
        one = waiting.pop()
        if one not in seen:
            seen.add(one)
            found |= named.get(one, set())
            waiting += sorted(uses.get(one, ()))
    return found


def _groups(text: str, places: tuple[Path, ...]) -> Iterator[str]:
    """The group that `${flow}` or, in a list of defaults, `/metrics@metrics.metrics` refers to."""
    name = text[2:-1] if text.startswith("${") and text.endswith("}") else text[1:].partition("@")[0]
    if text[:1] in ("$", "/") and name.isidentifier() and any((place / name).is_dir() for place in places):
        yield name


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from _texts(key)
            yield from _texts(value)
    elif isinstance(node, list):
        for value in node:
            yield from _texts(value)


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        for value in node.values():
            yield from _targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from _targets(value)


def has_choice(group: str, choice: str) -> bool:
    """Whether one of the folders has this choice of a group, a plain name of a file in it."""
    parts = [*group.split("/"), *choice.split("/")]
    if not all(part.replace("-", "_").isidentifier() and part.isascii() for part in parts):
        return False
    return any(os.path.isfile(os.path.join(place, *parts) + ".yaml") for place in folders())


def choice_of(group: str, choice: str) -> Any:
    """What the file of a choice holds, as it stands there."""
    for place in folders():
        file = place.joinpath(*group.split("/"), *choice.split("/")).with_suffix(".yaml")
        if file.is_file():
            return content_of(file)
    return None


def files_of(group: str) -> dict[str, Path]:
    """The YAML files of a group by the names of its choices (`heun`, `ablation/grid`); {} where there is no such group.

    Of two files of one name that of the first of `folders` counts, as it does for Hydra.
    """
    found: dict[str, Path] = {}
    for place in folders():
        for file in place.joinpath(group).rglob("*.yaml"):
            found.setdefault(file.relative_to(place / group).with_suffix("").as_posix(), file)
    return dict(sorted(found.items()))


def choice_that_builds(group: str, target: str, chosen: str | None = None) -> str:
    """What a class is called in a group: `coupling`, the choice whose file names `flowdiff.flows.CouplingFlow`.

    Args:
        group: of conf/.
        target: the class, as `_target_` names it.
        chosen: the choice that was made, as far as it is known; it counts where its file names the class.

    Returns:
        The choice; where no file names the class, or several do, the class's own name, `coupling_flow`.
    """
    names = [name for name in files_of(group) if _target_of(choice_of(group, name)) == target]
    if chosen in names:
        return str(chosen)
    return names[0] if len(names) == 1 else snake_case(target.rpartition(".")[2])


def _target_of(content: Any) -> Any:
    return content.get("_target_") if isinstance(content, Mapping) else None
