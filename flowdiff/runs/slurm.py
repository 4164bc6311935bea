"""Jobs that submitit runs (`hydra/launcher=submitit_slurm`): asked to make room, a job saves and is queued again.

SIGUSR1 and SIGUSR2 ask for it, as SLURM sends them before the time is over, and so does SIGTERM in the grace time of a
preemption. After a plain `scancel` the job saves as well, but SLURM no longer calls it running: it is not queued
again. What is queued again is the same job, by the same number, and goes on in its own folder.
"""

import os
import signal
import subprocess
from pathlib import Path

from flowdiff.errors import FlowdiffError
from flowdiff.files import read_json
from flowdiff.runs.interrupts import SIGNALS, is_scheduled


def job_id() -> str | None:
    """The scheduler's number of this job, the same after it was queued again; None without submitit."""
    if not is_scheduled():
        return None
    import submitit

    return str(submitit.JobEnvironment().job_id)


def is_requeued(folder: Path) -> bool:
    """Whether this very job has worked in `folder` before: its scheduler has started it again."""
    try:
        before = read_json(folder / "status.json").get("job_id")
    except (FlowdiffError, AttributeError):
        return False
    return before is not None and before == job_id()


def use_given_cpus() -> None:
    """As many threads as SLURM gave CPUs, unless OMP_NUM_THREADS says otherwise. Before torch is imported.

    Where SLURM binds no process to its CPUs, torch would take all that the node has.
    """
    given = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_ON_NODE")
    if is_scheduled() and given:
        os.environ.setdefault("OMP_NUM_THREADS", given)


def is_wanted_back(number: int) -> bool:
    """Whether a job that a signal has stopped is to be queued again."""
    if os.environ["SUBMITIT_EXECUTOR"] != "slurm":
        return number in (signal.SIGUSR1, signal.SIGUSR2)
    command = ["squeue", "--noheader", f"--jobs={job_id()}", "--format=%T"]
    state = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip()
    return number != signal.SIGINT and state in ("RUNNING", "SIGNALING")


def make_room(number: int) -> None:
    """Let submitit queue this job again and end the process. Returns if the job isn't to come back.

    Raises:
        FlowdiffError: submitit refuses, because the job's time was over too often.
    """
    import submitit

    handler = signal.getsignal(getattr(signal, f"SIG{submitit.JobEnvironment.USR_SIG}"))
    for other in SIGNALS:  # to queue a job again sends it a SIGTERM
        signal.signal(other, signal.SIG_IGN)
    if not (callable(handler) and is_wanted_back(number)):
        return
    try:
        handler(number, None)
    except submitit.core.utils.UncompletedJobError as error:
        advice = "hydra.launcher.timeout_min=MINUTES gives more time, hydra.launcher.max_num_timeout=N more turns"
        raise FlowdiffError(f"{error} {advice}") from error
