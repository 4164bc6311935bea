"""TensorBoard on the last sweep.   python -m flowdiff.dashboard FOLDER -- --port 6007

Without a folder: the sweep below multirun/ that was started last; the last run below outputs/ if there is none.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from flowdiff.errors import FlowdiffError

EVENTS = "events.out.tfevents*"


def find_newest() -> Path:
    """The folder of the last sweep or run that has written anything for TensorBoard.

    Raises:
        FlowdiffError: there is none.
    """
    for root in ("multirun", "outputs"):
        folders = sorted(Path(root).glob("*/*/*/"), key=lambda f: (f.parent.name, f.name), reverse=True)  # date, time
        for folder in folders:
            if any(folder.rglob(EVENTS)):
                return folder
    raise FlowdiffError("no sweep below multirun/ and no run below outputs/ has written anything for TensorBoard yet")


def main(words: Sequence[str] | None = None) -> None:
    """The command line; its process becomes TensorBoard's."""
    words = list(sys.argv[1:] if words is None else words)
    options = words[words.index("--") + 1 :] if "--" in words else []
    parser = argparse.ArgumentParser(
        prog="python -m flowdiff.dashboard",
        description="TensorBoard on the last sweep, or on the last run. What follows -- are TensorBoard's options.",
    )
    parser.add_argument("folder", nargs="?", type=Path, help="a sweep's or run's (default: the last sweep's)")
    given = parser.parse_args(words[: len(words) - len(options)])
    try:
        folder = given.folder or find_newest()
        if not folder.is_dir():
            raise FlowdiffError(f"{folder}: no such folder; give a sweep's or a run's")
    except FlowdiffError as error:
        sys.exit(str(error))
    print(f"tensorboard --logdir {shlex.quote(str(folder))}", flush=True)
    os.execv(sys.executable, [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), *options])
