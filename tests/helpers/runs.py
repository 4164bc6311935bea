"""Trainings in this process, without Hydra's command line."""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from flowdiff.commands.train import make_train_request
from flowdiff.runs.command_line import CommandLine
from flowdiff.training import run


def train(cfg: DictConfig, words: Sequence[str] = ()) -> dict[str, Any]:
    """What a composed configuration asks for, as if these words had led to it."""
    request, source = make_train_request(cfg)
    return run.train(request, CommandLine(tuple(words), source))
