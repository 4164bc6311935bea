"""The command lines: Hydra around all the rest. A DictConfig lives here alone."""

from flowdiff.commands.sweeps import Record

__all__ = ["Record"]
