"""One grid of samples for each value of a swept key: the same noise, the same classes."""

import hashlib
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from flowdiff.errors import FlowdiffError, one_line
from flowdiff.files import Unreadable
from flowdiff.reports import summary
from flowdiff.reports.rows import swept_keys
from flowdiff.runs.job_folders import Job
from flowdiff.runs.run_files import find_picture

COLUMNS = 10


def representative(jobs: Sequence[Job], key: str, value: str) -> Job | None:
    """The finished job with this value that is like the sweep's first job in most other keys; None if there is none."""
    others = [k for k in swept_keys(jobs) if k != key]

    def likeness(job: Job) -> int:
        return sum(job.overrides.get(k) == jobs[0].overrides.get(k) for k in others)

    mine = [job for job in jobs if job.overrides.get(key) == value and job.status == "done"]
    return max(mine, key=likeness, default=None)


def grid(job: Job, n: int, path: Path) -> Path | None:
    """n samples of a job's checkpoint, seed 0 and the classes in turn, or the grid that an evaluation has left.

    None if there is neither, or the checkpoint can't be sampled, or the grid is no PNG of its own folder.
    """
    checkpoint = find_checkpoint(job)
    if checkpoint is None or n == 0:
        return left_behind(job, path)
    from flowdiff.evaluation import pictures
    from flowdiff.model import api

    try:
        model = api.load(checkpoint)
        if not model.has_images:
            return left_behind(job, path)
        x = model.sample(n, quiet=True)
    except FlowdiffError as error:
        print(one_line(f"no samples of {job.folder}: {error}"), flush=True)
        return None
    pictures.save_png(pictures.image_grid(model.to_uint8(x.nan_to_num()), columns=min(COLUMNS, n)), path)
    return path


def find_checkpoint(job: Job) -> Path | None:
    """The best one of a job, else the last."""
    files = (job.folder / "checkpoints" / name for name in ("best.ckpt", "last.ckpt"))
    return next((file for file in files if file.is_file()), None)


def left_behind(job: Job, path: Path) -> Path | None:
    """A copy of the job's samples.png, if it has one."""
    try:
        drawn = find_picture(job.folder, "samples.png")
    except Unreadable as error:
        print(one_line(f"no samples of {job.folder}: {error}"), flush=True)
        return None
    return None if drawn is None else Path(shutil.copyfile(drawn, path))


def file_name(*words: str) -> str:
    """A file name of these words: another one for other words, also where what no name may hold is left out."""
    joined = "_".join(words)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", joined)[:100]
    if name == joined:
        return name
    return f"{name}_{hashlib.sha256(joined.encode(errors='surrogatepass')).hexdigest()[:8]}"


def grids(jobs: Sequence[Job], key: str, n: int, folder: Path) -> list[tuple[str, Path]]:
    """The grids of a key's values, with their captions."""
    made = []
    for value in summary.values(jobs, key):
        job = representative(jobs, key, value)
        if job is None:
            continue
        path = grid(job, n, folder / f"{file_name('samples', key, value)}.png")
        if path is not None:
            made.append((f"{key}={value} (job {job.folder.name})", path))
    return made
