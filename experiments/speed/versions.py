"""The training steps of this checkout beside those of another one, in turn, each in a process of its own.

new / old      seconds of the CPU of a step here over those there, in the same round
calls          of ATen in a step
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from experiments.common.columns import Column, Row
from experiments.speed.steps import losses_of, spread
from experiments.speed.timing import milliseconds, ratio

HERE = Path(__file__).parents[2]
SECONDS = 0.5  # of steps in a turn
COLUMNS = (
    Column("version", "old", lambda row: row["version"]),
    Column("name", "model", lambda row: row["name"]),
    Column("loss", "loss", lambda row: row["loss"]),
    spread("old", "ms, old"),
    spread("new", "ms, new"),
    spread("ratio", "new / old", "{:.3f}"),
    *(
        Column(f"{when}_{what}", f"{what}, {when}", lambda row, key=f"{when}_{what}": row[key], "{:,}")  # type: ignore
        for what in ("calls", "events")
        for when in ("old", "new")
    ),
)


class Worker:
    """`worker` in the folder of a checkout.

    Args:
        checkout: the folder.
    """

    def __init__(self, checkout: Path) -> None:
        command = [sys.executable, str(Path(__file__).with_name("worker.py"))]
        pipe, settings = subprocess.PIPE, os.environ | {"KINETO_LOG_LEVEL": "99"}  # the profiler is to be silent
        self.process = subprocess.Popen(command, cwd=checkout, env=settings, stdin=pipe, stdout=pipe, text=True)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def ask(self, **words: Any) -> dict[str, Any]:
        """One line and its answer.

        Raises:
            RuntimeError: the worker has ended.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):  # what the program itself prints isn't meant
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise RuntimeError(f"no answer to {words}: see above")

    def seconds(self, steps: int) -> float:
        """Of a step."""
        return float(self.ask(steps=steps)["seconds"])


def measure(
    checkout: Path, names: Sequence[str], losses: Sequence[str], dataset: str, rounds: int, say: Callable[[Row], None]
) -> list[Row]:
    """A row for each model that both versions have, and loss; `say` is given each at once."""
    rows = []
    names = [name for name in names if any((checkout / "conf").glob(f"*/{name}.yaml"))]
    with ExitStack() as stack:
        old, new = (stack.enter_context(Worker(folder)) for folder in (checkout.resolve(), HERE))
        for name in names:
            for loss in losses_of(name, losses):
                counts = {
                    f"{when}_{what}": number
                    for when, worker in (("old", old), ("new", new))
                    for what, number in worker.ask(name=name, loss=loss, dataset=dataset).items()
                }
                count = max(1, round(SECONDS / old.seconds(1)))
                found = [(old.seconds(count), new.seconds(count)) for _ in range(rounds)]
                before, now = ([pair[i] for pair in found] for i in range(2))
                row: Row = {"version": describe(checkout), "name": name, "loss": loss}
                row |= {"old": milliseconds(before), "new": milliseconds(now), "ratio": ratio(now, before)}
                rows.append(row | counts)
                say(rows[-1])
    return rows


def describe(checkout: Path) -> str:
    """The commit of a checkout, or the folder's name."""
    found = subprocess.run(["git", "-C", str(checkout), "describe", "--always"], capture_output=True, text=True)
    return found.stdout.strip() or checkout.name
