"""Evaluation from the command line.   python -m flowdiff.evaluate ckpt_path=… metrics=[bits_per_dim,fd,denoising]

What needs torch is imported when a job begins, so that --help and tab completion answer at once.
"""

import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flowdiff import cli


def run_of(ckpt_path: str | None) -> str:
    """The run folder of a checkpoint, ``RUN`` of RUN/checkpoints/last.ckpt; ``outputs`` where there is none
    or nothing may be written to it.
    """
    if not ckpt_path or not os.path.isfile(ckpt_path):
        return "outputs"
    folder = Path(ckpt_path).parent
    run = folder.parent if folder.name == "checkpoints" else folder
    return str(run) if os.access(run, os.W_OK) else "outputs"


OmegaConf.register_new_resolver("run_of", run_of, replace=True)


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Measure a checkpoint, print a table, write metrics.json: `flowdiff.evaluation.evaluate`."""
    from flowdiff import evaluation

    return evaluation.evaluate(cfg)


def main() -> None:
    """The command line."""
    cli.run(evaluate, "evaluate")


if __name__ == "__main__":
    main()
