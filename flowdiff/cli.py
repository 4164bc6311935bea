"""Running a command: Hydra around a task, mistakes in one line, ``status.json`` beside the results.

``run(task, "config")`` composes conf/config.yaml with the command line and calls ``task(cfg)`` once, or once
for each job of a sweep. A job that fails doesn't stop the sweep: its own log has the traceback, its
``status.json`` the error, and the exit code of the command is 1.
"""

import contextlib
import functools
import gc
import json
import logging
import os
import platform
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from flowdiff import cluster, mistakes, search, sweeps
from flowdiff.collect import read_job
from flowdiff.configs import config_dir
from flowdiff.errors import NonFiniteError
from flowdiff.files import write_atomically
from flowdiff.interrupts import Interrupted, Interrupts, scheduled

Task = Callable[[DictConfig], Any]
log = logging.getLogger(__name__)


failures: list[str] = []  # of the jobs that ran in this process


class JobFailed(Exception):
    """A job failed in another process and has said so itself. The message is the line that was printed."""


def run(task: Task, config_name: str = "config") -> None:
    """Run ``task`` as a Hydra application and leave the process with its exit code."""
    _complete(sys.argv[1:])
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come here, and are said in one line
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    job = functools.partial(_job, task)
    functools.update_wrapper(job, _job)
    failures.clear()
    try:
        sweeps.prepare(words, sys.argv, config_dir(), config_name)
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)(job)()
        code = 1 if failures else 0
    except JobFailed as failure:
        if any(word.startswith("hydra/launcher=submitit") for word in words):
            _say(str(failure))  # the job has said so in a file
        code = 1
    except Interrupted as stop:
        code = stop.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except Exception as error:
        line = mistakes.explain(error, words, config_dir(), config_name)
        if line is None:
            traceback.print_exc()
        _say(line or f"this is a bug: {type(error).__name__}: {mistakes.one_line(error)}")
        code = 1
    finally:
        HydraConfig.instance().cfg = None  # --cfg leaves it set, for whatever this process does next
    sys.stdout.flush()
    sys.exit(code)


COMPLETION = """\
flowdiff_completion() {
    local words=($COMP_LINE)
    if [ "${words[1]}" == "-m" ] && [[ "${words[2]}" == flowdiff.* ]]; then
        local choices=$(COMP_LINE=$COMP_LINE COMP_POINT=$COMP_POINT ${words[0]} -m ${words[2]} -sc query=bash)
        COMPREPLY=($(compgen -o nospace -o default -W "$choices" -- "${words[$COMP_CWORD]}"))
    fi
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o default -F flowdiff_completion python python3
"""


def _complete(words: list[str]) -> None:
    """Hydra's tab completion knows scripts, but not ``python -m``: its rule for bash is given here, and the
    line
    to complete is put into the form that it reads."""
    if {"-sc", "--shell_completion"} & set(words) and "install=bash" in words:
        print(COMPLETION)
        sys.exit(0)
    line = os.environ.get("COMP_LINE", "")
    os.environ["COMP_LINE"] = re.sub(r"^\S*python\S* -m flowdiff\.\w+", "flowdiff", line)


def _job(task: Task, cfg: DictConfig) -> Any:
    """One job: the task, with its status written before and after."""
    quiet()
    cluster.use_given_cpus()
    hydra_cfg = HydraConfig.get()
    folder, name = Path(hydra_cfg.runtime.output_dir), str(hydra_cfg.job.config_name)
    overrides = list(hydra_cfg.overrides.task)
    status = Status(folder, overrides)
    sought = hydra_cfg.mode == RunMode.MULTIRUN and search.searches(hydra_cfg)
    try:
        result = None
        with Interrupts() if scheduled() else contextlib.nullcontext():
            again = cfg.get(sweeps.KEY) or cluster.requeued(folder)
            if not (again and _goes_on(cfg, folder, overrides, hydra_cfg.job.num)):
                status.write("running")
                mistakes.check_types(overrides, config_dir(), name)
                result = task(cfg)
                status.write("done")
        return search.objective(cfg.get(search.KEY), read_job(folder).metrics, hydra_cfg.sweeper) if sought else result
    except Interrupted as stop:
        status.write("interrupted", str(stop))
        if scheduled():
            cluster.make_room(stop.number)
            raise SystemExit(stop.exit_code) from None
        raise
    except (KeyboardInterrupt, SystemExit) as stop:
        status.write("interrupted", type(stop).__name__)
        raise
    except Exception as error:
        line = mistakes.explain(error, overrides, config_dir(), name)
        shown = line or f"this is a bug: {type(error).__name__}: {mistakes.one_line(error)}"
        if not isinstance(error, sweeps.OtherJob):
            status.write("failed", shown)
        trace = traceback.format_exc()
        if not _to_log_file(trace) or line is None:
            print(trace if line is None else "", end="", file=sys.stderr)
        said = f"job {hydra_cfg.job.num}: {shown}" if hydra_cfg.mode == RunMode.MULTIRUN else shown
        _say(said)
        failures.append(shown)
        if sought and isinstance(error, NonFiniteError):
            return search.worst(hydra_cfg.sweeper)
        if hydra_cfg.mode == RunMode.MULTIRUN and not _plain_sweep(hydra_cfg):
            raise JobFailed(said) from None
        return None  # Hydra would print the failure once more, after the last job
    finally:
        _release_memory()


def _goes_on(cfg: DictConfig, folder: Path, overrides: list[str], number: int) -> bool:
    """Whether a job that runs again is done already. An interrupted one is told its last checkpoint."""
    state, last = sweeps.standing(folder, overrides)
    if last is not None:
        with open_dict(cfg):
            cfg.ckpt_path = str(last)
    print(f"job {number}: {state}" + (f", goes on from {last}" if last else ""), flush=True)
    return state == "done"


def _release_memory() -> None:
    """What a job leaves behind, in cycles of references, is not carried into the next job of the sweep."""
    gc.collect()
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        sys.modules["torch"].cuda.empty_cache()


def _plain_sweep(hydra_cfg: Any) -> bool:
    """Whether all jobs run one after the other in this process, and nobody waits for their results."""
    return not search.searches(hydra_cfg) and "Basic" in str(hydra_cfg.launcher.get("_target_"))


class Status:
    """``status.json`` of a run: what state it is in, why, since when, for how long, with which words."""

    def __init__(self, folder: Path, overrides: list[str]) -> None:
        self.file, self.overrides = folder / "status.json", overrides
        self.start = time.time()

    def write(self, state: str, error: str | None = None) -> None:
        """Write it; a disk that can't take it is no reason to lose the error that is being reported."""
        if os.environ.get("LOCAL_RANK", "0") != "0":
            return
        content = {
            "status": state,
            "error": error,
            "seconds": round(time.time() - self.start, 1),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(self.start)),
            "overrides": self.overrides,
            "pid": os.getpid(),
            "host": platform.node(),
            "job_id": cluster.job_id(),
        }
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        try:
            write_atomically(self.file, lambda file: file.write(text.encode()))
        except OSError as problem:
            if state != "failed":
                raise
            _say(f"{self.file} could not be written: {problem.strerror}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _to_log_file(text: str) -> bool:
    """Write to the job's log file, not to the terminal. False if there is none."""
    written = False
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.emit(logging.LogRecord(__name__, logging.ERROR, __file__, 0, text, None, None))
            handler.flush()
            written = True
    return written


def quiet() -> None:
    """Less of what libraries say at each start; their warnings of problems stay."""
    for name in (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.pytorch.accelerators",
        "lightning.fabric",
    ):
        logging.getLogger(name).setLevel(logging.WARNING)
    silent = ("does not have many workers", "GPU available but not used", "treespec", "You requested to overfit")
    for words in (*silent, "The number of training batches", "torch.jit.script", "The `srun` command is available"):
        warnings.filterwarnings("ignore", message=f".*{words}.*")
