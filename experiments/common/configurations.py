"""The configurations that the experiments train and build, and what conf/ has of them."""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from flowdiff.commands.error_messages import choices, composed
from flowdiff.model.vocabulary import config_dir
from flowdiff.training.building import plain


def compose_config(words: Sequence[str]) -> DictConfig:
    """What `python -m flowdiff.train WORDS` would train."""
    return composed(words, config_dir(), "config")


def plain_config(words: Sequence[str]) -> dict[str, Any]:
    """The same, resolved to plain values."""
    return plain(compose_config(words))


def flow_names() -> list[str]:
    """The choices of conf/flow."""
    return choices("flow", config_dir())
