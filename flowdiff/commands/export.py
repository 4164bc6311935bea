"""A model for other programs.   python -m flowdiff.export ckpt_path=RUN/checkpoints/last.ckpt output_dir=FOLDER

What needs torch is imported when a job begins, so that --help and tab completion answer at once.
"""

from typing import Any

from omegaconf import DictConfig

from flowdiff.commands import cli


def export(cfg: DictConfig) -> dict[str, Any]:
    """Write a model in another format: `model.export.export`."""
    from flowdiff.model import export

    return export.export(cfg)


def main() -> None:
    """The command line."""
    cli.run(export, "export")
