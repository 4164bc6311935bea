"""Training from the command line.   python -m flowdiff.train flow.n_flows=5 activation=elu

What needs torch is imported when a run begins, so that --help and tab completion answer at once.
"""

import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from flowdiff.commands import cli, error_messages
from flowdiff.errors import ConfigError, FlowdiffError
from flowdiff.runs.words import typed_words
from flowdiff.training import places


def train(cfg: DictConfig) -> dict[str, Any]:
    """Train one model and evaluate it: `training.run.train`."""
    from flowdiff.training import run

    return run.train(cfg)


def task(cfg: DictConfig) -> dict[str, Any]:
    """One job of the command line: a new run, or a run that goes on (`commands.resume`)."""
    from flowdiff.commands import resume
    from flowdiff.training import run

    path, words = resume.find_checkpoint(cfg), typed_words()
    choices = error_messages.choices_made(HydraConfig.get())
    if path:
        places.check_links(cfg.run_dir)
        with open_dict(cfg):
            cfg.ckpt_path = path
        typed = [word for word in words if word.split("=")[0] not in ("ckpt_path", "resume")]
        cfg, words, choices = resume.resumed(cfg, typed)
    return run.train(cfg, words, choices)


def main() -> None:
    """The command line."""
    if "resume=last" in sys.argv and not any(word.startswith("hydra.run.dir=") for word in sys.argv):
        sys.argv.append("hydra.run.dir=.")  # the run folder one is in
        try:  # before Hydra writes to it
            if not Path("checkpoints", "last.ckpt").is_file():
                hint = "has no checkpoints/last.ckpt; cd into a run folder, or give ckpt_path=FILE"
                raise ConfigError("resume", "last", f"{Path.cwd()} {hint}")
            places.check_links(".")
        except FlowdiffError as error:
            print(error, file=sys.stderr)
            sys.exit(1)
    cli.run(task, "config", exclusive=True)
