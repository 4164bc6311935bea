"""`python -m MODULE WORDS` without its imports: a fork of a process that has imported what takes long.

A process of its own all the same, with its own arguments, folder, environment, output, exit code and session. Torch,
Lightning and what they import take more than ten seconds, which each worker of the tests spends once.
"""

import atexit
import contextlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path

ROOT = Path(__file__).parents[2]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.helpers.forkserver"])


class Forked:
    """A command line that runs, with the methods of `subprocess.Popen` that the tests use.

    Args:
        module, words: of the command line.
        cwd, env: its folder and its whole environment.
        outputs: files for what it writes to stdout and stderr, or one twice.
    """

    def __init__(
        self, module: str, words: Sequence[str], cwd: Path, env: Mapping[str, str], outputs: tuple[Path, Path]
    ) -> None:
        self.args, self.outputs = [module, *words], outputs
        with contextlib.chdir(ROOT):  # where it finds these tests, whatever folder the first command runs in
            forkserver.ensure_running()
        self._process = FORKS.Process(target=_main, args=(self.args, str(cwd), dict(env), [*map(str, outputs)]))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """All that it wrote, at its end.

        Raises:
            subprocess.TimeoutExpired: it takes longer.
        """
        self._process.join(timeout)
        out, err = (path.read_text() if path.exists() else "" for path in self.outputs)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0, out.encode(), err.encode())
        return out, err

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """It, and what it has started."""
        os.killpg(self.pid, signal.SIGKILL)


def run(
    module: str, words: Sequence[str], cwd: Path, env: Mapping[str, str], outputs: tuple[Path, Path], timeout: float
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run` would say of it; arguments as those of `Forked`.

    Raises:
        subprocess.TimeoutExpired: it took longer than `timeout` seconds, and was killed.
    """
    process = Forked(module, words, cwd, env, outputs)
    try:
        out, err = process.communicate(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode is not None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def _main(args: list[str], cwd: str, env: dict[str, str], outputs: list[str]) -> None:
    import torch

    os.setsid()
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    torch.set_num_threads(int(env.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    sys.path[:0] = [cwd, *env.get("PYTHONPATH", "").split(os.pathsep)]
    sys.argv = args
    try:
        runpy.run_module(args[0], run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # a fork leaves without them
