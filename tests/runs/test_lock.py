"""One process a folder: the second is refused by name, what a killed one left is taken over."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from flowdiff.errors import FlowdiffError
from flowdiff.runs import lock
from tests.helpers.command_lines import BARE, Command, Compose, environment
from tests.helpers.runs import train

HOLD = """
import os, sys, time
from pathlib import Path
from flowdiff.runs import lock
with lock.occupy(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path) -> "subprocess.Popen[str]":
    """A process that holds the folder `tmp_path/run`."""
    (tmp_path / "run").mkdir()
    call = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    process = subprocess.Popen(call, stdout=subprocess.PIPE, text=True, env=environment())
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_process_is_refused_and_a_killed_ones_folder_is_taken_over(
    other: "subprocess.Popen[str]", config: Compose, command: Command, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    (run / ".hydra").mkdir()
    (run / ".hydra" / "overrides.yaml").write_text("[lr=1]\n")
    (run / "status.json").write_text('{"status": "running"}')
    before = {file: file.read_text() for file in run.rglob("*") if file.is_file()}
    words = (*BARE, "trainer.max_steps=1", "trainer.limit_val_batches=1")
    who = f"in use by process {other.pid} on {platform.node()}"

    done = command("train", *words, f"hydra.run.dir={run}")
    assert done.returncode == 1 and done.stderr.strip() == f"{run}: {who}; a folder takes one process"
    with pytest.raises(FlowdiffError, match=f"run_dir={run}: {who}"):
        train(config(*words, run_dir=run))
    done = command("train", "--multirun", *words, "seed=0,1", f"hydra.sweep.dir={run}", "resume_sweep=true")
    assert done.returncode == 1 and done.stderr.strip().endswith(f"{who}; a folder takes one process")
    for exclusive in (True, False):
        with pytest.raises(lock.OtherJob, match=who), lock.occupy(run, exclusive):
            pass
    after = {file: file.read_text() for file in run.rglob("*") if file.is_file() and file.name != "train.log"}
    assert after == before, "the refused ones have written nothing"

    other.kill()
    other.wait()
    with lock.occupy(run) as killed:
        assert killed is not None and killed.pid == other.pid
    assert not (run / lock.NAME).exists()


def test_a_folder_is_ours_until_we_leave_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / lock.NAME
    with lock.occupy(tmp_path) as killed:
        assert killed is None and json.loads(file.read_text())["pid"] == os.getpid()
        with lock.occupy(tmp_path), lock.occupy(tmp_path, exclusive=False):
            pass
        assert file.exists()
    assert list(tmp_path.iterdir()) == []
    with lock.occupy(tmp_path):
        file.unlink()
        with pytest.raises(FlowdiffError, match="removed while"), lock.occupy(tmp_path):
            pass
    with lock.occupy(tmp_path, exclusive=False):
        assert list(tmp_path.iterdir()) == [], "several processes may evaluate in one folder"
    monkeypatch.setenv("LOCAL_RANK", "1")
    with lock.occupy(tmp_path):
        assert list(tmp_path.iterdir()) == [], "the first process of the run holds it"


def test_another_machines_process_cant_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / lock.NAME
    text = json.dumps({"host": "elsewhere", "pid": 7, "job_id": "12_3"})
    file.write_text(text)
    message = f"in use by process 7 on elsewhere, which can't be seen from here; if it has ended, remove {file}"
    with pytest.raises(lock.OtherJob, match=message), lock.occupy(tmp_path):
        pass
    assert file.read_text() == text
    monkeypatch.setattr(lock.slurm, "job_id", lambda: "12_3")
    with lock.occupy(tmp_path) as killed:  # its scheduler has started it again, on this machine
        assert killed == lock.Holder("elsewhere", 7, "12_3")
    file.write_text(text[:9])
    with lock.occupy(tmp_path) as killed:
        assert killed is None
