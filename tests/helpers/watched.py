"""A process that opens hostile files with every command and is watched: `python -m watched GOOD FOLDER OUT`.

An audit hook notes what no file may lead to: files opened for writing, made, renamed or removed outside of OUT,
sockets, processes, unpickled classes, modules of packages that a good file doesn't need. `OUT/files.json` has the
commands that each file is given to; `OUT/report.json` has, for each file and command, the outcome (an error's line,
or null), what was noted, CPU seconds, and megabytes by which the process has grown.
"""

import contextlib
import io
import json
import os
import pickle
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flowdiff
from flowdiff.commands import error_messages, resume
from flowdiff.commands import evaluate as evaluation
from flowdiff.commands import export as exporting
from flowdiff.commands import sample as sampling
from flowdiff.commands.train import make_train_request
from flowdiff.errors import FlowdiffError
from flowdiff.runs.command_line import CommandLine
from flowdiff.training import run
from tests.helpers.command_lines import MODEL, TINY
from tests.helpers.configs import composed
from tests.helpers.hostile import MARK

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
PATHS = {"os.mkdir": 1, "os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.link": 2, "os.symlink": 2, "os.chmod": 1}
NEVER = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pickle.find_class")
HARMLESS = ("socket.gethostname",)
#: Typed now, by the user: the good file's model, which keeps no words; a step more, without pictures.
TYPED = [
    *MODEL,
    "trainer.max_steps=21",
    "callbacks=minimal",
    "evaluate=null",
    "metrics=[]",
    "trainer.limit_val_batches=1",
]


class Watch:
    """What an audit hook notes while `noting` is true."""

    def __init__(self, allowed: Path) -> None:
        self.allowed, self.noting, self.noted = str(allowed), False, list[str]()
        self.known: set[str] = set()

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.noting:
            return
        if event == "open" and isinstance(args[0], str | bytes) and isinstance(args[2], int) and args[2] & WRITING:
            self._path("open", args[0])
        elif event in PATHS:
            for path in args[: PATHS[event]]:
                self._path(event, path)
        elif event == "import" and str(args[0]).partition(".")[0] not in self.known:
            self.noted.append(f"import {args[0]}")
        elif event == "exec" and getattr(args[0], "co_name", "") == "<module>":  # a module, however it is imported
            file = args[0].co_filename
            if not file.startswith("<") and not self.known & {part.removesuffix(".py") for part in file.split("/")}:
                self.noted.append(f"exec {file}")
        elif event.startswith(NEVER) and event not in HARMLESS:
            self.noted.append(f"{event} {str(args)[:200]}")

    def _path(self, event: str, path: Any) -> None:
        if isinstance(path, int) or os.fsdecode(path) == os.devnull:
            return
        where = os.path.realpath(os.fsdecode(path))
        if where != self.allowed and not where.startswith(f"{self.allowed}/"):
            self.noted.append(f"{event} {where}")


def commands(out: Path) -> dict[str, Callable[[str], Any]]:
    """What opens a model's file, each by its path."""
    sample = composed("sample", "num_samples=1", "num_steps=1", f"output_dir={out}/sample")
    evaluate = composed("evaluate", "num_steps=1", f"output_dir={out}/evaluate", "data_root=null")
    exported = composed("export", f"output_dir={out}/export")
    train = composed("config", *TINY, *TYPED, f"run_dir={out}/train")

    def trained(path: str) -> None:
        cfg = train.copy()
        cfg.ckpt_path = path
        resumed, words, content = resume.resume(cfg, TYPED)
        request, source = make_train_request(resumed)
        run.train(request, CommandLine(tuple(words), source), content)

    def told(run: Callable[[Any], Any], cfg: Any) -> Callable[[str], Any]:
        def call(path: str) -> Any:
            cfg.ckpt_path = path
            return run(cfg)

        return call

    return {
        "load": flowdiff.load,
        "sample": told(sampling.sample, sample),
        "evaluate": told(evaluation.evaluate, evaluate),
        "export": told(exporting.export, exported),
        "train": trained,
    }


def tried(command: Callable[[str], Any], path: str, watch: Watch, out: Path) -> dict[str, Any]:
    """One command on one file."""
    for name in ("sample", "evaluate", "export", "train"):
        shutil.rmtree(out / name, ignore_errors=True)
    start, size = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line, trace, said = None, None, io.StringIO()
    watch.noted, watch.noting = [], True
    signal.alarm(120)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            command(path)
    except FlowdiffError as error:
        line = str(error)
    except BaseException as error:
        line = error_messages.explain(error, TYPED, "config") if isinstance(error, Exception) else None
        trace = traceback.format_exc() if line is None else None
    signal.alarm(0)
    watch.noting = False
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - size
    seconds = time.process_time() - start
    told = {"line": line, "trace": trace, "noted": watch.noted, "said": said.getvalue()[-2000:]}
    return told | {"seconds": seconds, "megabytes": grown / 1024}


def offend(path: str) -> None:
    """What the watch is for, to see that it sees it."""
    (Path(path) / "written").write_text("x")
    (Path(path) / "made").mkdir()
    socket.socket().close()
    os.system("true")
    subprocess.run(["true"], check=True)
    pickle.loads(pickle.dumps(Path()))
    __import__("this")
    raise ValueError("two\nlines")


def main() -> None:
    good, folder, out = (Path(path).resolve() for path in sys.argv[1:4])
    watch = Watch(out)
    sys.addaudithook(watch)
    each = commands(out)
    for command in each.values():  # what a good file imports
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            command(str(good))
    watch.known = {name.partition(".")[0] for name in sys.modules}
    os.chdir(folder)
    assert not (folder / MARK).exists()
    each["control"] = offend
    files = json.loads((out / "files.json").read_text())
    report = {
        f"{name} {Path(path).name[:60]}": tried(each[name], path, watch, out)
        for path, names in files.items()
        for name in names
    }
    (out / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
