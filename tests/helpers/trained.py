"""Tiny trained checkpoints, each trained once in a session of tests."""

import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.helpers.command_lines import BARE, TINY
from tests.helpers.configs import composed
from tests.helpers.runs import train

WORDS = {
    "digits": [],
    "toy": ["experiment=toy", "dataset.num_train=512", "dataset.num_test=64"],
    "unet": ["denoiser=unet", "denoiser.width=8", "denoiser.multipliers=[1]", "loss=denoising"],
}


def edited(path: Path, target: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A checkpoint with `change(content)` done to it, as a stranger would: without the digest that it had."""
    content = torch.load(path, weights_only=True)
    for name in ("sha256", "signature"):
        content.pop(name, None)
    change(content)
    torch.save(content, target)
    return target


@functools.cache
def checkpoint(name: str) -> Path:
    """`RUN/checkpoints/last.ckpt` of a model of `WORDS` after 20 steps."""
    run = Path(tempfile.mkdtemp(prefix=f"flowdiff-{name}-"))
    atexit.register(shutil.rmtree, run, ignore_errors=True)
    tiny = [w for w in TINY if name != "unet" or not w.startswith("flow.")]
    words = [*tiny, *WORDS[name], *BARE, "trainer.max_steps=20", f"run_dir={run}"]
    train(composed("config", *words))
    return run / "checkpoints" / "last.ckpt"
