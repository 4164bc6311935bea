"""``python -m MODULE WORDS`` without its imports: a fork of a process that has imported what takes long.

A process of its own all the same, with its own arguments, folder, environment, output, exit code and session. Torch,
Lightning and what they import take more than ten seconds, which each worker of the tests spends once.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["flowdiff.resume", "flowdiff.training", "flowdiff.sampling", "torch.utils.tensorboard"])


def run(
    module: str, words: Sequence[str], cwd: Path, env: Mapping[str, str], outputs: tuple[Path, Path], timeout: float
) -> subprocess.CompletedProcess[str]:
    """What ``subprocess.run`` would say of it.

    Args:
        module, words: of the command line.
        cwd, env: its folder and its whole environment.
        outputs: files for what it writes to stdout and stderr, or one twice.
        timeout: seconds, after which its session is killed.

    Raises:
        subprocess.TimeoutExpired: it took longer.
    """
    process = FORKS.Process(target=_main, args=(module, list(words), str(cwd), dict(env), [*map(str, outputs)]))
    process.start()
    process.join(timeout)
    if process.exitcode is None:
        assert process.pid is not None
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        raise subprocess.TimeoutExpired([module, *words], timeout, *(path.read_bytes() for path in outputs))
    out, err = (path.read_text() for path in outputs)
    return subprocess.CompletedProcess([module, *words], process.exitcode, out, err)


def _main(module: str, words: list[str], cwd: str, env: dict[str, str], outputs: list[str]) -> None:
    import torch

    os.setsid()
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    torch.set_num_threads(int(env.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    sys.path[:0] = [cwd, *env.get("PYTHONPATH", "").split(os.pathsep)]
    sys.argv = [module, *words]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # a fork leaves without them
