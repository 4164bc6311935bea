"""All that a run writes lies below its own folder, whatever its configuration says."""

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flowdiff.errors import ConfigError, FlowdiffError, spell
from flowdiff.model import configuration

ENTRIES = 20_000  # of a folder that are looked at


def check(config: Mapping[str, Any], run_dir: Path) -> None:
    """Refuse places that a run would write to outside of its folder.

    Args:
        config: the run's resolved configuration.
        run_dir: its folder, which is there.

    Raises:
        ConfigError: names the key.
    """
    for key, place in _list_written(config):
        if not is_below(place, run_dir):
            raise ConfigError(key, place, f"must lie in the run folder, {spell(run_dir)}")


def is_below(place: str | os.PathLike[str], folder: str | os.PathLike[str]) -> bool:
    """Whether a place is the folder or in it, links followed."""
    try:
        inner, outer = Path(place).expanduser().resolve(), Path(folder).resolve()
    except (OSError, RuntimeError, ValueError):
        return False
    return inner == outer or outer in inner.parents


def _list_written(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    trainer = config.get("trainer") or {}
    if trainer.get("default_root_dir") is not None:
        yield "trainer.default_root_dir", str(trainer["default_root_dir"])
    for key, node in configuration.nodes("callbacks", config.get("callbacks")):
        for name in ("folder", "dirpath"):
            if isinstance(node.get(name), str):
                yield f"{key}.{name}", node[name]
    for key, node in configuration.nodes("logger", config.get("logger")):
        save_dir = node.get("save_dir")
        if isinstance(save_dir, str):
            yield f"{key}.save_dir", save_dir
            below = [str(node[name]) for name in ("name", "version", "sub_dir") if node.get(name) is not None]
            yield f"{key}.version", os.path.join(save_dir, *below)


def check_links(folder: str | os.PathLike[str]) -> None:
    """Refuse a run folder that holds links which lead out of it, or pipes and the like: what is written there would be
    written elsewhere, or wait for ever.

    Raises:
        FlowdiffError: names one; or there are more files than can be looked at.
    """
    count = 0
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path, count = os.path.join(place, name), count + 1
            if os.path.islink(path) and not is_below(path, folder):
                raise FlowdiffError(f"{spell(path)}: a link that leads out of the run folder; remove it")
            if name in names and not os.path.islink(path) and not stat.S_ISREG(os.lstat(path).st_mode):
                raise FlowdiffError(f"{spell(path)}: not a regular file; remove it")
            if count > ENTRIES:
                raise FlowdiffError(
                    f"{spell(folder)}: more than {ENTRIES:,} files, which no run writes; move some away"
                )
