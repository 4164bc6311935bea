"""A model for other programs.   python -m flowdiff.export ckpt_path=RUN/checkpoints/last.ckpt output_dir=FOLDER

What needs torch is imported when a job begins, so that --help and tab completion answer at once.
"""

from typing import Any

from omegaconf import DictConfig

from flowdiff.commands import cli


def export(cfg: DictConfig) -> dict[str, Any]:
    """Write a model in another format: `model.export.export`."""
    from flowdiff.commands.configuration import make_request
    from flowdiff.model import export as writing
    from flowdiff.model.requests import ExportRequest

    return writing.export(make_request(ExportRequest, cfg))


def main() -> None:
    """The command line."""
    cli.run(export, "export")
