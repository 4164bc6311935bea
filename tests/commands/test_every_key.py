"""Every key of every command, set to what it can't be: one line that names it and its value, or a run that it is right
for. Never a traceback, never torch's or Hydra's own words.

The keys are those of the composed configurations, so that a new one is tried without being named here.
"""

import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from flowdiff.commands import cli, error_messages, evaluate, export, sample, train
from flowdiff.errors import one_line, spell
from tests.helpers.command_lines import TINY
from tests.helpers.configs import composed
from tests.helpers.trained import checkpoint

VALUES: tuple[Any, ...] = ("wrong", None, "", -1, 0, 1e9, 10**9, math.nan, [1], {"a": 1}, True)
#: Not a budget of seconds any more; they are right, and only patience ends them.
PATIENT = (
    "trainer.max_steps",
    "trainer.max_epochs",
    "trainer.accumulate_grad_batches",
    "dataset.batch_size",
    "compile",
)
#: Keys of what is written beside the checkpoints; with another key none of it is made.
RESULTS = ("callbacks", "logger", "metrics", "evaluate", "sampler", "schedule")
COMMANDS = {
    "config": (
        train.train,
        (*TINY, "trainer.max_steps=1", "callbacks.sample_grid.rows=1", "callbacks.sample_grid.columns=2")
        + ("metrics.fd.num_samples=8", "metrics.recognised.num_samples=8", "metrics.denoising.num_images=8")
        + ("metrics.denoising.sigmas=[1]", "num_steps=1", "callbacks.denoising_grid.columns=1")
        + ("callbacks.denoising_grid.sigmas=[1]", "trainer.limit_val_batches=1"),
    ),
    "sample": (sample.sample, ("num_samples=1", "num_steps=1")),
    "evaluate": (evaluate.evaluate, ("num_steps=1", "metrics=[denoising]", "metrics.denoising.num_images=8")),
    "export": (export.export, ()),
}


def keys(node: Any, key: str = "") -> Iterator[str]:
    """All of a configuration's, the inner ones too; what an interpolation stands for is not gone into."""
    for name, value in node.items():
        where = f"{key}.{name}" if key else str(name)
        yield where
        if isinstance(value, Mapping):
            yield from keys(value, where)


def outcome(name: str, key: str, value: Any, cfg: DictConfig, folder: Path) -> str:
    """What a command makes of a value: "runs", or the line that refuses it."""
    changed = cfg.copy()
    OmegaConf.set_struct(changed, False)
    for place in ("run_dir", "output_dir"):
        if place in changed:
            changed[place] = str(folder)
    if name == "config" and key.split(".")[0] not in RESULTS:
        changed.evaluate, changed.logger = None, None
        changed.callbacks.sample_grid = changed.callbacks.denoising_grid = None
    OmegaConf.update(changed, key, value, merge=False, force_add=True)
    try:
        COMMANDS[name][0](changed)
    except Exception as error:
        config = cli._plain(changed)
        line = error_messages.explain(error, [f"{key}={spell(value)}"], name, config)
        if line is None:
            raise
        return line
    return "runs"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "share", "shares"),
    [*(("config", share, 8) for share in range(8)), ("sample", 0, 1), ("evaluate", 0, 1), ("export", 0, 1)],
)
def test_every_key(name: str, share: int, shares: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a share: every so many of a command's keys."""
    monkeypatch.chdir(tmp_path)
    warnings.simplefilter("ignore")
    cfg = composed(name, *COMMANDS[name][1], *([f"ckpt_path={checkpoint('digits')}"] if name != "config" else []))
    wrong = []
    for key in [*keys(OmegaConf.to_container(cfg, resolve=False))][share::shares]:
        for value in VALUES:
            if key in PATIENT and type(value) in (int, bool) and value > 0:
                continue
            try:
                line = outcome(name, key, value, cfg, tmp_path / key)
            except Exception as error:
                wrong.append(f"{key}={spell(value)}: {type(error).__name__}: {one_line(error, 300)}")
                continue
            begins = (f"{key}=", f"{key}.", f"{key.split('.')[0]}=")
            if line != "runs" and (not line.startswith(begins) or "\n" in line):
                wrong.append(f"{key}={spell(value)}: said {line[:300]}")
    assert not wrong, "\n" + "\n".join(wrong)
