"""Trainings that are compared, and the result of each: run once, kept as JSON, an error like any other.

A result is a dictionary of plain values: `request` (what was asked for), `error` (None if there was none), what
was measured of the training, and `metrics` as in a run's metrics.json. A result that answers the same request is
not measured again.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from experiments.common import budget
from flowdiff.errors import ConfigError, FlowdiffError, one_line
from flowdiff.files import write_json

Result = dict[str, Any]


@dataclass(frozen=True)
class Contender:
    """One model on one dataset under one budget.

    Attributes:
        name: of its row.
        kind: flowdiff, baseline (a model of this package without a flow) or peer (another library's).
        settings: the words of the command line after experiment=DATASET.
        dataset: an experiment of conf/experiment.
        seconds: of training.
        seed: of everything.
    """

    name: str
    kind: str
    settings: Any
    dataset: str
    seconds: float
    seed: int

    @property
    def request(self) -> Result:
        """What its result has to answer."""
        words = {"name": self.name, "kind": self.kind, "settings": self.settings, "dataset": self.dataset}
        return words | {"seconds": self.seconds, "seed": self.seed}

    def run(self, folder: Path, limit: float) -> Result:
        """Train and measure, with all files below `folder`.

        Raises:
            FlowdiffError: it failed; the message is one line.
        """
        words = [f"experiment={self.dataset}", *self.settings]
        return budget.train_for(self.seconds, words, self.seed, folder, limit)


def choose(everyone: list[Contender], names: str | None) -> list[Contender]:
    """Those whose names stand in a list with commas; all for None.

    Raises:
        ConfigError: a name that isn't there.
    """
    if names is None:
        return everyone
    known = {contender.name: contender for contender in everyone}
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in known:
            raise ConfigError("--models", name, f"must be among {', '.join(known)}")
    return [known[name] for name in wanted]


@dataclass
class Results:
    """The results of contenders, a JSON file each in `folder`.

    Attributes:
        folder: of the JSON files.
        runs: takes the run folders.
        again: measure what is there already once more.
        limit: seconds of wall-clock for one command of a contender; None: 20 times its budget and half an hour.
        say: is told what happens.
    """

    folder: Path
    runs: Path
    again: bool = False
    limit: float | None = None
    say: Callable[[str], None] = field(default=print)

    def read(self, contender: Contender) -> Result | None:
        """The result that answers the contender's request, if there is one."""
        file = self.folder / f"{contender.name}.json"
        try:
            result = json.loads(file.read_text())
        except (OSError, ValueError):
            return None
        return result if isinstance(result, dict) and result.get("request") == contender.request else None

    def get(self, contender: Contender) -> Result:
        """The contender's result: the one that is there, or a new one. An error is tried anew."""
        result = self.read(contender)
        if result is not None and result["error"] is None and not self.again:
            self.say(f"{contender.name}: done already ({self.folder / contender.name}.json)")
            return result
        self.say(f"{contender.name}: training for {contender.seconds:g} s")
        when = time.strftime("%Y-%m-%d_%H-%M-%S")
        run = (self.runs / contender.dataset / contender.name / when).resolve()
        limit = 20 * contender.seconds + 1800 if self.limit is None else self.limit
        result = {"request": contender.request, "error": None, "machine": describe_machine()}
        try:
            result |= contender.run(run, limit)
        except Exception as error:  # whatever it is, the others are measured
            kind = "" if isinstance(error, FlowdiffError) else f"{type(error).__name__}: "
            result["error"] = kind + one_line(error)
            self.say(f"{contender.name}: {result['error']}")
        write_json(self.folder / f"{contender.name}.json", result, ensure_ascii=False)
        return result

    def measure(self, everyone: list[Contender], names: str | None, report: Callable[[Sequence[Result]], None]) -> None:
        """Get those with these names (see `choose`), one after the other; `report` is given all rows after each."""
        for contender in choose(everyone, names):
            self.get(contender)
            report([row for c in everyone if (row := self.read(c)) is not None])


def describe_machine() -> Result:
    """What the times depend on; `load` is that of others in the last minute, as far as it is known."""
    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": sys.platform,
    }
