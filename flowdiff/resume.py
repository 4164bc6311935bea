"""Going on with a run.

``ckpt_path=RUN/checkpoints/last.ckpt`` goes on in a new run folder and leaves the old one as it is;
``resume=last``, typed inside a run folder, goes on in that folder and appends to its metrics. Either way the
checkpoint's own configuration is the base, and what is typed on the command line wins over it.
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flowdiff import checkpoint, cli, mistakes
from flowdiff.errors import ConfigError, FlowdiffError
from flowdiff.training import plain


def resumed(cfg: DictConfig, overrides: list[str]) -> tuple[DictConfig, list[str]]:
    """The configuration to go on with, the checkpoint's with the given words on top; and all words, old and new.

    Three configurations are compared: ``theirs``, composed from the checkpoint's own command line with the
    new words after it; ``base``, composed from the checkpoint's own command line; and ``ours``, stored in
    the checkpoint. Where theirs equals base, nothing new was asked for and the stored value counts, even if
    the YAML files have changed since. What is built (``_target_``) always comes from the YAML files, never
    from the checkpoint.
    """
    path = str(cfg.ckpt_path)
    entry = checkpoint.read(path)["flowdiff"]
    old = [str(word) for word in entry["overrides"]]
    if any("_target_" in word or "${" in word for word in old):
        raise FlowdiffError(f"ckpt_path={path}: its command line holds _target_ or an interpolation; not followed")
    old = [w for w in old if w.split("=")[0].lstrip("+") not in ("ckpt_path", "resume", "run_dir")]
    keys = {word.split("=")[0].lstrip("+~") for word in overrides}
    kept = [word for word in old if word.split("=")[0].lstrip("+~") not in keys]
    folder = cli.config_dir()
    base = mistakes.composed(old, folder, "config")
    theirs = mistakes.composed([*kept, *overrides], folder, "config")
    merged = _merge(plain(theirs, resolve=False), plain(base, resolve=False), entry["source"])
    merged |= {"ckpt_path": path, "resume": None, "run_dir": str(cfg.run_dir)}
    return OmegaConf.create(merged), [*kept, *overrides]


def _merge(theirs: Any, base: Any, ours: Any) -> Any:
    if not all(isinstance(c, dict) for c in (theirs, base, ours)):
        unsafe = any(isinstance(v, str) and ("${" in v or "_target_" in v) for v in checkpoint.walk(ours))
        return ours if theirs == base and not unsafe else theirs
    known = {k for k in theirs if k in base and k in ours and not str(k).startswith("_")}
    return {k: _merge(v, base[k], ours[k]) if k in known else v for k, v in theirs.items()}


def find_checkpoint(cfg: DictConfig) -> str | None:
    """The checkpoint to go on from, as an absolute path; None for a fresh run."""
    if cfg.get("resume") is None:
        return str(Path(str(cfg.ckpt_path)).expanduser().absolute()) if cfg.get("ckpt_path") else None
    if cfg.resume != "last":
        raise ConfigError("resume", cfg.resume, "must be last, typed inside a run folder (else ckpt_path=FILE)")
    path = Path("checkpoints", "last.ckpt").absolute()
    if not path.is_file():
        raise ConfigError("resume", "last", f"{path} does not exist; cd into a run folder, or give ckpt_path=FILE")
    return str(path)
