"""Going on with a sweep: the same command again, with `resume_sweep=true`.

The newest sweep that was started by the same words is found (or its folder given, `hydra.sweep.dir=…`). Of its jobs
those that `status.json` calls done are left as they are; one that was interrupted or killed, or that failed, goes on
from its last checkpoint, in its own folder; those that have none run from their beginning.
"""

from collections.abc import Sequence
from pathlib import Path

from flowdiff.runs import lock, slurm
from flowdiff.runs.job_folders import read_job
from flowdiff.runs.lock import OtherJob

KEY = "resume_sweep"


def pick_swept(words: Sequence[str]) -> list[str]:
    """The words that say what is swept, in an order of their own."""
    return sorted(word for word in words if not word.startswith((f"{KEY}=", "hydra.", "hydra/", "-")))


def find_state(folder: Path, overrides: Sequence[str], killed: lock.Holder | None = None) -> tuple[str, Path | None]:
    """How far the job in a folder had come: its status, and its last checkpoint if it goes on from one.

    Args:
        folder: the job's.
        overrides: its words now.
        killed: the process that is known to have been killed in it, whoever has its number now.

    Raises:
        OtherJob: the folder belongs to another job, or its process still runs. A job that its scheduler has started
            again is the same job: where it says that it runs, it was killed.
    """
    if not (folder / "status.json").is_file():
        return "not started", None
    job = read_job(folder)
    if pick_swept(job.words) != pick_swept(overrides):
        raise OtherJob(f"{KEY}=true: {folder} holds another job ({' '.join(job.words)}); remove it, or sweep anew")
    if job.status == "running":
        if killed is None and not slurm.is_requeued(folder):
            raise OtherJob(f"{KEY}=true: the job in {folder} is still running")
        job.status = "killed"
    last = folder / "checkpoints" / "last.ckpt"
    return job.status, last if job.status != "done" and last.is_file() else None
