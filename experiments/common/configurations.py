"""What the experiments train and build, and what conf/ has of it."""

from collections.abc import Sequence
from typing import Any

from flowdiff.commands.train import request_of
from flowdiff.model.requests import spell_out
from flowdiff.model.vocabulary import files_of
from flowdiff.runs.command_line import CommandLine
from flowdiff.training import run


def train(words: Sequence[str], said: Sequence[str] | None = None) -> dict[str, Any]:
    """What `python -m flowdiff.train WORDS` does, in this process.

    Args:
        words: of the command line.
        said: those of them that a user would have typed; None: all.
    """
    return run.train(request_of(*words), CommandLine(tuple(words if said is None else said)))


def plain_config(words: Sequence[str]) -> dict[str, Any]:
    """The configuration that words lead to, resolved to plain values."""
    config: dict[str, Any] = spell_out(request_of(*words))
    return config


def flow_names() -> list[str]:
    """The choices of conf/flow."""
    return list(files_of("flow"))
