"""What a checkpoint holds, compared bit for bit."""

from pathlib import Path

import torch
from torch import Tensor

from flowdiff.model import checkpoint


def states(path: Path) -> dict[str, object]:
    """All tensors and numbers of a checkpoint that the rest of a run depends on."""
    content = checkpoint.read(path)
    kept = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "global_step")
    return {key: content[key] for key in kept} | {"micro_step": content["flowdiff"]["micro_step"]}


def equal(a: object, b: object) -> bool:
    """Bit for bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(equal, a, b))
    return a == b
