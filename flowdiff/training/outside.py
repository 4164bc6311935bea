"""What of a training lies outside of its run: processes, plugins, services. A user says it; a stored file doesn't."""

import os
from collections.abc import Mapping
from typing import Any

from flowdiff.model import safe_construction

#: Of Lightning's Trainer: what starts processes, loads plugins or writes. Others mark theirs (`options.OUTSIDE`).
TRAINER = (
    "strategy", "devices", "num_nodes", "plugins", "profiler", "logger", "callbacks", "default_root_dir",
    "enable_checkpointing", "fast_dev_run", "barebones", "sync_batchnorm", "model_registry",
)  # fmt: skip
#: What a Trainer in this process says of these.
USUAL = (None, "auto", 1, "${run_dir}")


def says_outside(config: Mapping[str, Any]) -> bool:
    """Whether a configuration says something that is not followed from a stranger's file (`commands.stored_words`).

    Args:
        config: plain values, a request spelled out.
    """
    usual = (os.environ.get("FLOWDIFF_DATA"), "data")
    found = [
        value
        for group in ("dataset", "first_stage", "metrics")
        for value in safe_construction.find_outside(group, config.get(group)).values()
        if value not in usual
    ]
    processes = any(config["trainer"].get(key) not in USUAL for key in ("strategy", "devices", "num_nodes"))
    return bool(found) or processes or bool(config.get("compile")) or "wandb" in (config.get("logger") or {})
