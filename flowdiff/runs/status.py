"""What a run says of itself beside its results: `status.json`, and the log file of its job."""

import json
import logging
import os
import platform
import sys
import time
from pathlib import Path

from flowdiff.files import require_folder, write_atomically
from flowdiff.runs import interrupts, slurm


class Status:
    """`status.json` of a run: what state it is in, why, since when, for how long, with which words."""

    def __init__(self, folder: Path, overrides: list[str]) -> None:
        self.file, self.overrides = folder / "status.json", overrides
        self.start = time.time()

    def write(self, state: str, error: str | None = None) -> None:
        """Write it; a disk that can't take it is no reason to lose the error that is being reported.

        Raises:
            FlowdiffError: the folder isn't there any more, where all seemed to be done.
        """
        if not interrupts.is_first():
            return
        if state in ("running", "done"):
            require_folder(self.file.parent)
        elif not self.file.parent.is_dir():  # it isn't made again, only to say this
            return
        content = {
            "status": state,
            "error": error,
            "seconds": round(time.time() - self.start, 1),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(self.start)),
            "overrides": self.overrides,
            "pid": os.getpid(),
            "host": platform.node(),
            "job_id": slurm.job_id(),
        }
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        try:
            write_atomically(self.file, lambda file: file.write(text.encode()))
        except OSError as problem:
            if state != "failed":
                raise
            print(f"{self.file} could not be written: {problem.strerror}", file=sys.stderr, flush=True)


def to_log_file(text: str) -> bool:
    """Write to the job's log file, not to the terminal. False if there is none."""
    written = False
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.emit(logging.LogRecord(__name__, logging.ERROR, __file__, 0, text, None, None))
            handler.flush()
            written = True
    return written
