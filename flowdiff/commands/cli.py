"""Running a command: Hydra around a task, mistakes in one line, `status.json` beside the results.

`run(task, "config")` composes conf/config.yaml with the command line and calls `task(cfg)` once, or once
for each job of a sweep. A job that fails doesn't stop the sweep: its own log has the traceback, its
`status.json` the error, and the exit code of the command is 1.
"""

import argparse
import contextlib
import functools
import gc
import importlib
import logging
import os
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from flowdiff.commands import error_messages, help_texts, sweeps, tab_completion
from flowdiff.commands.command_line import typed_words
from flowdiff.errors import ConfigError, FlowdiffError, NonFiniteError, one_line, spell
from flowdiff.files import write_text
from flowdiff.model.vocabulary import add_folder, config_dir
from flowdiff.runs import interrupts, lock, search, slurm
from flowdiff.runs.interrupts import Interrupted, Interrupts
from flowdiff.runs.job_folders import read_job
from flowdiff.runs.status import Status, to_log_file
from flowdiff.runs.sweeps import find_state

Task = Callable[[DictConfig], Any]
log = logging.getLogger(__name__)


FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "output_dir", "run_dir")
failures: list[str] = []  # of the jobs that ran in this process


class JobFailed(Exception):
    """A job failed in another process and has said so itself. The message is the line that was printed."""


OmegaConf.register_new_resolver("choices", help_texts.describe_choices, replace=True)
OmegaConf.register_new_resolver("groups", help_texts.list_groups, replace=True)


def run(task: Task, config_name: str = "config", exclusive: bool = False) -> None:
    """Run `task` as a Hydra application and leave the process with its exit code.

    Args:
        task: a job of the command, given its configuration.
        config_name: of conf/.
        exclusive: whether a job keeps other processes from its folder (`runs.lock`).
    """
    tab_completion.answer(sys.argv[1:])
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come here, and are said in one line
    words: list[str] = []
    job = functools.partial(_job, task, exclusive)
    functools.update_wrapper(job, _job)
    failures.clear()
    try:
        with Interrupts() as signals, sweeps.held:
            try:
                typed, options = _arrange(sys.argv)
                words += typed
                if options.help:
                    help_texts.print_help(words, config_name, options.resolve)
                    sys.exit()
                sweeps.prepare(words, sys.argv, config_name)
                hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)(job)()
            except Exception as error:
                if signals.received is not None:  # what a signal has torn
                    raise Interrupted(signals.received) from error
                raise
            if signals.received is not None:  # the workers of a launcher have saved and ended
                raise Interrupted(signals.received)
            code = 1 if failures else 0
    except JobFailed as failure:
        if any(word.startswith("hydra/launcher=submitit") for word in words):
            _say(str(failure))  # the job has said so in a file
        code = 1
    except sweeps.Refused as refused:
        _say(str(refused))
        code = 1
    except (Interrupted, KeyboardInterrupt) as stop:
        interrupts.ignore()
        stopped = stop if isinstance(stop, Interrupted) else Interrupted(signal.SIGINT)
        again = f"; the same command with {sweeps.KEY}=true goes on" if sweeps.Record.folder else ""
        stopped.say(f"interrupted{again}", sys.stderr)
        code = stopped.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except Exception as error:
        line = error_messages.explain(error, words, config_name, composing=True)
        if line is None:
            traceback.print_exc()
        _say(line or f"this is a bug: {type(error).__name__}: {one_line(error)}")
        code = 1
    finally:
        HydraConfig.instance().cfg = None  # --cfg leaves it set, for whatever this process does next
    sys.stdout.flush()
    sys.exit(code)


def _arrange(arguments: list[str]) -> tuple[list[str], argparse.Namespace]:
    """Put options before words, as Hydra wants them; refuse in one line what it would answer with its usage.

    Returns:
        The words, and the options.

    Raises:
        FlowdiffError: an option that there isn't, or a folder that is an empty word.
    """
    parser = get_args_parser()
    parser.exit_on_error = False
    parser.error = _refuse  # type: ignore[method-assign]
    try:
        found, rest = parser.parse_known_args(arguments[1:])
    except argparse.ArgumentError as error:
        _refuse(str(error))
    if found.config_dir:
        add_folder(found.config_dir)  # now: what is wrong with the words is said of it too
    if found.resolve and not (found.cfg or found.help):
        _refuse("--resolve goes with --cfg")
    if sum(map(bool, (found.run, found.multirun, found.cfg, found.help, found.hydra_help, found.info))) > 1:
        _refuse("one of --run, --multirun, --cfg, --info and --help at a time")
    if found.config_dir and os.path.isdir(found.config_dir):
        add_folder(found.config_dir)
    for word in rest:
        if word.startswith("-"):
            key, equals, value = word.lstrip("-").partition("=")
            hint = f"keys are typed without dashes, {key}={value}" if equals else "--help says which there are"
            raise FlowdiffError(f"{word}: no such option; {hint}")
    words = [word for word in arguments[1:] if word in {*found.overrides, *rest}]
    for word in words:
        key, _, value = word.partition("=")
        if not key:
            raise FlowdiffError(f"{spell(word)}: not understood; write key=value")
        if key in FOLDERS and (value in ("", "null") or value.startswith(("[", "{"))):
            raise ConfigError(key, value, "must be a folder; is a variable of the shell not set?")
    arguments[1:] = [*(each for each in arguments[1:] if each not in words), *words]
    return words, found


def _refuse(message: str) -> NoReturn:
    raise FlowdiffError(f"{message}; --help says more")


def _job(task: Task, exclusive: bool, cfg: DictConfig) -> Any:
    """One job, in a folder that other processes keep out of."""
    quiet()
    slurm.use_given_cpus()
    hydra_cfg = HydraConfig.get()
    for source in hydra_cfg.runtime.config_sources:
        if source.schema == "file" and os.path.isdir(source.path):
            add_folder(source.path)
    if sweeps.is_in_workers(hydra_cfg) and sweeps.Record.folder is None:  # and not with n_jobs=1 in the sweep's own
        Interrupts.be_worker()
    folder = Path(hydra_cfg.runtime.output_dir)
    status = Status(folder, typed_words())
    try:
        with lock.occupy(folder, exclusive) as killed:
            return _attempt(task, cfg, hydra_cfg, status, killed)
    except lock.OtherJob as error:
        return _report_failure(error, hydra_cfg, status, cfg)
    finally:
        _release_memory()


def _attempt(task: Task, cfg: DictConfig, hydra_cfg: Any, status: "Status", killed: lock.Holder | None) -> Any:
    """The task, with its status written before and after."""
    folder, overrides = status.file.parent, status.overrides
    try:
        with Interrupts() as signals:
            if Interrupts.ended_worker:
                return None
            try:
                result = None
                _write_record(folder, cfg)
                again = cfg.get(sweeps.KEY) is True or slurm.is_requeued(folder)
                if not (again and _goes_on(cfg, folder, overrides, hydra_cfg.job.num, killed)):
                    status.write("running")
                    if _is_sought(hydra_cfg) and cfg.get(search.KEY):
                        search.check(cfg[search.KEY], cfg.get("metrics") or {}, hydra_cfg.sweeper)
                    with signals.defer():
                        importlib.import_module("torch")
                    result = task(cfg)
                    status.write("done")
                if _is_sought(hydra_cfg):
                    return search.objective(cfg.get(search.KEY), read_job(folder).metrics, hydra_cfg.sweeper)
                return result
            except Exception as error:
                if signals.received is None or isinstance(error, FlowdiffError):
                    raise
                raise Interrupted(signals.received) from error  # what the signal has torn
    except Interrupted as stop:
        if Interrupts.in_worker:
            interrupts.ignore()
            Interrupts.ended_worker = True
        status.write("interrupted", str(stop))
        if interrupts.is_scheduled():
            slurm.make_room(stop.number)
            raise SystemExit(stop.exit_code) from None
        if Interrupts.in_worker:  # an exception would end the other workers before they have saved
            return None
        raise
    except (KeyboardInterrupt, SystemExit) as stop:
        status.write("interrupted", type(stop).__name__)
        raise
    except Exception as error:
        return _report_failure(error, hydra_cfg, status, cfg)


def _report_failure(error: Exception, hydra_cfg: Any, status: "Status", cfg: DictConfig) -> Any:
    """Say what was wrong, and write it down where the folder is this job's own."""
    name = str(hydra_cfg.job.config_name)
    line = error_messages.explain(error, status.overrides, name, _plain(cfg))
    reason = line or f"this is a bug: {type(error).__name__}: {one_line(error)}"
    if not isinstance(error, lock.OtherJob):
        status.write("failed", reason)
        trace = "".join(traceback.format_exception(error))
        if not to_log_file(trace) or line is None:
            print(trace if line is None else "", end="", file=sys.stderr)
    said = f"job {hydra_cfg.job.num}: {reason}" if hydra_cfg.mode == RunMode.MULTIRUN else reason
    _say(said)
    failures.append(reason)
    if _is_sought(hydra_cfg) and isinstance(error, NonFiniteError):
        return search.worst_value(hydra_cfg.sweeper)
    if hydra_cfg.mode == RunMode.MULTIRUN and not _plain_sweep(hydra_cfg):
        raise JobFailed(said) from None
    if hydra_cfg.mode == RunMode.RUN and _is_of_words(error):
        _remove_unbegun(status.file.parent, str(hydra_cfg.job.name))
    return None  # Hydra would print the failure once more, after the last job


def _plain(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain values; unresolved, where it can't be resolved."""
    try:
        return dict(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
    except OmegaConfBaseException:
        return dict(OmegaConf.to_container(cfg, resolve=False))  # type: ignore[arg-type]


def _remove_unbegun(folder: Path, job: str) -> None:
    """A run that a mistake has stopped before it began leaves no folder that looks like a run's."""
    own = {".hydra", "status.json", "config.yaml", lock.NAME, f"{job}.log"}
    if folder == Path.cwd() or not {path.name for path in folder.iterdir()} <= own:
        return
    for handler in list(logging.getLogger().handlers):
        if isinstance(handler, logging.FileHandler) and Path(handler.baseFilename).is_relative_to(folder.absolute()):
            logging.getLogger().removeHandler(handler)  # it would open its file again
            handler.close()
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # until one holds something else
        for parent in folder.parents:
            if parent == Path.cwd():
                break
            parent.rmdir()


def _is_of_words(error: Exception) -> bool:
    """Whether it is a mistake in what was asked for, and not what became of it."""
    return isinstance(error, FlowdiffError | OmegaConfBaseException) and not isinstance(error, lock.OtherJob)


def _is_sought(hydra_cfg: Any) -> bool:
    """Whether a search waits for the job's number."""
    return hydra_cfg.mode == RunMode.MULTIRUN and search.searches(hydra_cfg)


def _write_record(folder: Path, cfg: DictConfig) -> None:
    """What Hydra writes into `.hydra` otherwise, before anybody has asked whose folder it is."""
    if interrupts.is_first():
        hydra_cfg = HydraConfig.get()
        for name, content in (
            ("config", cfg),
            ("hydra", {"hydra": hydra_cfg}),
            ("overrides", hydra_cfg.overrides.task),
        ):
            write_text(folder / ".hydra" / f"{name}.yaml", OmegaConf.to_yaml(content))


def _goes_on(cfg: DictConfig, folder: Path, overrides: list[str], number: int, killed: lock.Holder | None) -> bool:
    """Whether a job that runs again is done already. An interrupted one is told its last checkpoint."""
    state, last = find_state(folder, overrides, killed)
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


def _say(line: str) -> None:
    print(one_line(line), file=sys.stderr, flush=True)


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
