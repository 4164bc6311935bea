"""What of a training lies outside of its run: processes, plugins, services. A user says it; a stored file doesn't."""

import os

from flowdiff.model import safe_construction
from flowdiff.model.requests import spell_out
from flowdiff.training.request import TrainRequest

#: Of Lightning's Trainer: what starts processes, loads plugins or writes. Others mark theirs (`options.OUTSIDE`).
TRAINER = (
    "strategy", "devices", "num_nodes", "plugins", "profiler", "logger", "callbacks", "default_root_dir",
    "enable_checkpointing", "fast_dev_run", "barebones", "sync_batchnorm", "model_registry",
)  # fmt: skip
#: What a Trainer in this process says of these.
USUAL = (None, "auto", 1, "${run_dir}")


def says_outside(request: TrainRequest) -> bool:
    """Whether a request says something that is not followed from a stranger's file (`commands.stored_words`)."""
    usual = (os.environ.get("FLOWDIFF_DATA"), "data")
    found = {
        key: value
        for group in ("dataset", "first_stage", "metrics")
        for key, value in safe_construction.find_outside(group, spell_out(getattr(request, group))).items()
        if value not in usual
    }
    trainer = request.trainer
    processes = any(value not in USUAL for value in (trainer.strategy, trainer.devices, trainer.num_nodes))
    return bool(found) or processes or request.compile or "wandb" in (request.logger or {})
