"""Training from the command line.   python -m flowdiff.train flow.n_flows=5 activation=elu

What needs torch is imported when a run begins, so that --help and tab completion answer at once.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, open_dict

from flowdiff.commands import cli
from flowdiff.commands.command_line import read_command_line, typed_words
from flowdiff.commands.composition import compose, find_choices
from flowdiff.errors import ConfigError, FlowdiffError
from flowdiff.model.vocabulary import add_folder
from flowdiff.runs import places
from flowdiff.runs.words import read_word

if TYPE_CHECKING:
    from flowdiff.training.request import TrainRequest


def train(cfg: DictConfig) -> dict[str, Any]:
    """One job of the command line: a new run, or a run that goes on (`commands.resume`)."""
    from flowdiff.commands import resume
    from flowdiff.training import run

    path, words = resume.find_checkpoint(cfg), typed_words()
    content, choices = None, None
    if path:
        places.check_links(cfg.run_dir)
        with open_dict(cfg):
            cfg.ckpt_path = path
        typed = [word for word in words if read_word(word).key not in ("ckpt_path", "resume")]
        cfg, words, content = resume.resume(cfg, typed)
        choices = find_choices(words, "config")
    request, source = make_train_request(cfg)
    return run.train(request, read_command_line(words, source, choices), content)


def make_train_request(cfg: DictConfig) -> "tuple[TrainRequest, dict[str, Any]]":
    """What a composed configuration asks for, and the configuration before its interpolations are resolved.

    Raises:
        ConfigError: a value that is not allowed, with its key.
    """
    from flowdiff.commands.configuration import to_plain
    from flowdiff.model.requests import check, fill
    from flowdiff.training.request import TrainRequest

    source = to_plain(cfg, resolve=False)
    check(TrainRequest, source)  # first: what is wrong here is what an interpolation would stumble over
    config = to_plain(cfg)
    check(TrainRequest, config)
    return fill(TrainRequest, config), source


def request_of(*words: str, config_dir: str | None = None) -> "TrainRequest":
    """The request of `python -m flowdiff.train WORDS`, for a notebook: `training.train(request_of("flow=linear"))`.

    Args:
        words: `key=value`, as on the command line; without `run_dir=FOLDER` the run goes to outputs/notebook.
        config_dir: a folder of configurations of one's own.
    """
    given = words if any(word.startswith("run_dir=") for word in words) else (*words, "run_dir=outputs/notebook")
    if config_dir is not None:
        add_folder(config_dir)
    return make_train_request(compose(given, "config"))[0]


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
    cli.run(train, "config", exclusive=True)
