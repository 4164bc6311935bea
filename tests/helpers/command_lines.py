"""Small runs of the real command lines, in processes of their own."""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import DictConfig

from tests.helpers import forked

ROOT = Path(__file__).resolve().parent.parent.parent
#: The model of tests of the machinery, not of what is learnt.
MODEL = ("flow=coupling", "base=normal")
#: A size and a budget for any model.
SMALL = (
    "flow.n_flows=2",
    "flow.width=16",
    "flow.depth=1",
    "dataset.batch_size=64",
    "conditioning.sigma_embed_dim=8",
    "conditioning.cond_embed_dim=8",
    "num_steps=3",
    "warmup_steps=2",
    "trainer.log_every_n_steps=2",
    "callbacks.checkpoints.every_n_steps=1000",
    "callbacks.progress.interval=0",
)
TINY = (*MODEL, *SMALL)
#: No pictures and no metrics.
BARE = ("callbacks=minimal", "logger=none", "metrics=[]", "evaluate=null")

Compose = Callable[..., DictConfig]
Command = Callable[..., subprocess.CompletedProcess[str]]
Run = Callable[..., tuple[int, str, str]]


def environment() -> dict[str, str]:
    """For a subprocess: this checkout's package, one thread, no colours."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


def run_on_a_full_disk(
    module: str, words: Sequence[str], cwd: Path, said: Path, room: int
) -> subprocess.CompletedProcess[str]:
    """A command that can write no file of more than `room` bytes; `said` is a folder for its output."""
    (said / "small.py").write_text(
        f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))\n"
        f"from flowdiff import {module}\n{module}.main()\n"
    )
    env = environment()
    env["PYTHONPATH"] = os.pathsep.join([str(said), env["PYTHONPATH"]])
    return forked.run("small", words, cwd, env, (said / "out", said / "err"), timeout=240)


def start(cwd: Path, *words: str) -> forked.Forked:
    """A training that goes on in the background, its output in a folder beside `cwd`."""
    said = Path(tempfile.mkdtemp(prefix="said-", dir=cwd.parent))
    return forked.Forked("flowdiff.train", words, cwd, environment(), (said / "out", said / "err"))


def wait_for(found: Callable[[], object], process: forked.Forked, seconds: float = 240) -> None:
    """Until something is there, or the process has ended."""
    end = time.monotonic() + seconds
    while not found():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


def run_folders(root: Path) -> Sequence[Path]:
    """The run folders below a folder, in the order of their names."""
    return sorted(status.parent for status in root.rglob("status.json"))


def status(run: Path) -> dict[str, object]:
    return json.loads((run / "status.json").read_text())
