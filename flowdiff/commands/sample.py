"""Sampling from the command line.   python -m flowdiff.sample ckpt_path=RUN/checkpoints/last.ckpt num_samples=16

What needs torch is imported when a job begins, so that --help and tab completion answer at once.
"""

from typing import Any

from omegaconf import DictConfig

from flowdiff.commands import cli


def sample(cfg: DictConfig) -> dict[str, Any]:
    """Draw and write samples: `commands.samples.draw`."""
    from flowdiff.commands import samples
    from flowdiff.commands.configuration import make_request

    return samples.draw(make_request(samples.SampleRequest, cfg))


def main() -> None:
    """The command line."""
    cli.run(sample, "sample")
