"""Going on with a run.

`ckpt_path=RUN/checkpoints/last.ckpt` goes on in a new run folder and leaves the old one as it is;
`resume=last`, typed inside a run folder, goes on in that folder and appends to its metrics. Either way the
checkpoint's own configuration is the base, and what is typed on the command line wins over it.

The checkpoint may be a stranger's. Its words and values are data (`commands.stored_words`): what is built, and where a
run reads and writes, come from conf/ and from the user's own words; paths, services and the number of processes that
it names are followed only where this user wrote it (`model.seal`), and where a run writes never.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flowdiff.commands import stored_words
from flowdiff.commands.command_line import given_config_dir
from flowdiff.commands.composition import compose, is_choice
from flowdiff.commands.configuration import to_plain
from flowdiff.errors import ConfigError, FlowdiffError, one_line, spell
from flowdiff.files import expand_user
from flowdiff.model import checkpoint, safe_construction, seal
from flowdiff.model.facts import about
from flowdiff.runs.words import read_word

OF_THIS_RUN = ("ckpt_path", "resume", "run_dir", "resume_sweep")
WRITTEN = ("callbacks", "logger", "trainer.default_root_dir")  # where a run writes: what is outside in these


def resume(cfg: DictConfig, overrides: list[str]) -> tuple[DictConfig, list[str], dict[str, Any]]:
    """The configuration to go on with, the checkpoint's with the given words on top; all words, old and new; and what
    the checkpoint holds.

    Three configurations are compared: `theirs`, composed from the checkpoint's own command line with the
    new words after it; `base`, composed from the checkpoint's own command line; and `ours`, stored in
    the checkpoint. Where theirs equals base, nothing new was asked for and the stored value counts, even if
    the YAML files have changed since. What is built (`_target_`) always comes from the YAML files, never
    from the checkpoint.

    Raises:
        FlowdiffError: the checkpoint can't be read, or holds words that no run of flowdiff's leads to.
    """
    path = str(cfg.ckpt_path)
    content = checkpoint.read(path)
    entry, own = content["flowdiff"], seal.is_own(content)
    check_config_dir(entry, path)
    try:
        old, base = _follow(entry.get("overrides", []), own)
    except FlowdiffError as error:
        raise about(path, error) from error
    except (HydraException, OmegaConfBaseException, ValueError, TypeError, KeyError) as error:
        why = f"its command line doesn't fit the choices in conf/: {one_line(error)}"
        raise about(path, FlowdiffError(why)) from error
    keys = {read_word(word).key for word in overrides}
    kept = [word for word in old if read_word(word).key not in keys]
    theirs = _compose([*kept, *overrides])
    merged = _merge(theirs, base, entry.get("source", entry["config"]), base, own, "")
    if not own and "metrics" not in keys:
        merged["metrics"] = _drop_fetching(merged.get("metrics"), keys)
    merged |= {"ckpt_path": path, "resume": None, "run_dir": str(cfg.run_dir)}
    return OmegaConf.create(merged), [*kept, *overrides], content


def _follow(stored: list[str], own: bool) -> tuple[list[str], dict[str, Any]]:
    """Those of the stored words that are followed, and what they lead to. Of the others a line says so."""
    read = [o for o in stored_words.read(stored) if o.key_or_group not in OF_THIS_RUN]
    whole = _compose([str(o.input_line) for o in read])
    kept: list[str] = []
    left: list[str] = []
    for override in read:
        key, outside = override.key_or_group, stored_words.goes_outside(override, whole)
        follow = not outside or (own and not (key.startswith(WRITTEN) and not is_choice(override)))
        (kept if follow else left).append(str(override.input_line))
    if left:
        what = "is only what the checkpoint says and not followed; type it again if it is right"
        print(f"{' '.join(left)}: {what}", flush=True)
    base = _compose(kept) if left else whole
    if not own:
        stored_words.check_composed(base)
    return kept, base


def _compose(words: list[str]) -> dict[str, Any]:
    return to_plain(compose(words, "config"), resolve=False)


def check_config_dir(entry: Mapping[str, Any], path: str) -> None:
    """Refuse to go on without the configurations that a run was trained with.

    Args:
        entry: `"flowdiff"` of the checkpoint; `config_dir` in it is a word for the message and no more.
        path: the checkpoint's.

    Raises:
        FlowdiffError: it was trained with `--config-dir`, which is not given now.
    """
    theirs = entry.get("config_dir")
    if isinstance(theirs, str) and theirs and HydraConfig.initialized() and given_config_dir() is None:
        raise FlowdiffError(f"ckpt_path={path}: was trained with --config-dir={one_line(theirs, 500)}: give it again")


def _merge(theirs: Any, base: Any, ours: Any, whole: Mapping[str, Any], own: bool, key: str) -> Any:
    """`theirs`, with the stored values where nothing new was asked for and a value is all that is stored."""
    if not all(isinstance(c, dict) for c in (theirs, base, ours)):
        return ours if theirs == base and _is_value(ours, base) and _is_followed(key, whole, own) else theirs
    known = {k for k in theirs if k in base and k in ours and not str(k).startswith("_")}
    return {
        k: _merge(v, base[k], ours[k], whole, own, f"{key}.{k}" if key else str(k)) if k in known else v
        for k, v in theirs.items()
    }


def _is_followed(key: str, whole: Mapping[str, Any], own: bool) -> bool:
    outside = stored_words.is_outside(key, whole)
    return not outside or (own and not key.startswith((*WRITTEN, *OF_THIS_RUN)))


def _is_value(ours: Any, base: Any) -> bool:
    """Whether a stored value can stand where conf/ has `base`: a scalar of its kind, or a list of scalars."""
    if isinstance(ours, list):
        return isinstance(base, list) and all(_is_value(each, None) for each in ours)
    if isinstance(ours, str):
        return "$" not in ours and ours != "???" and (base is None or isinstance(base, str))
    if isinstance(ours, bool):
        return base is None or isinstance(base, bool) or _is_interpolation(base)
    if isinstance(ours, int | float):
        return base is None or (isinstance(base, int | float) and not isinstance(base, bool)) or _is_interpolation(base)
    return ours is None and not isinstance(base, dict)


def _is_interpolation(value: Any) -> bool:
    return isinstance(value, str) and "${" in value


def _drop_fetching(metrics: Any, keys: set[str]) -> Any:
    """The metrics but those that would ask the network for something and aren't named now; of them a line says so."""
    found = {}
    for name, node in (metrics or {}).items():
        named = any(key == f"metrics.{name}" or key.startswith(f"metrics.{name}.") for key in keys)
        if node and not named and safe_construction.build("metrics", node).fetches:
            print(f"skipped {name}: it would fetch a network's weights; metrics=[{name}] asks for that", flush=True)
        else:
            found[name] = node
    return found


def find_checkpoint(cfg: DictConfig) -> str | None:
    """The checkpoint to go on from, as an absolute path; None for a fresh run."""
    if cfg.get("resume") is None:
        return str(expand_user(str(cfg.ckpt_path)).absolute()) if cfg.get("ckpt_path") else None
    if cfg.resume != "last":
        raise ConfigError("resume", cfg.resume, "must be last, typed inside a run folder (else ckpt_path=FILE)")
    path = Path("checkpoints", "last.ckpt").absolute()
    if not path.is_file():
        allowed = f"{spell(path)} does not exist; cd into a run folder, or give ckpt_path=FILE"
        raise ConfigError("resume", "last", allowed)
    return str(path)
