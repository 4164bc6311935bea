"""The training command in processes of its own: results, sweeps, resuming, signals, a killed process, a full
disk.
"""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from flowdiff.model import checkpoint
from tests.helpers.command_lines import (
    BARE,
    TINY,
    Command,
    run_folders,
    run_on_a_full_disk,
    start,
    status,
    wait_for,
)

pytestmark = pytest.mark.slow

QUICK = (*TINY, "callbacks=minimal", "logger=csv", "evaluate=null")


def test_a_run_its_results_and_going_on(command: Command, tmp_path: Path) -> None:
    words = (*TINY, "trainer.max_steps=4", "metrics=[bits_per_dim,denoising]", "callbacks.sample_grid.rows=1")
    done = command("train", *words, "activation=elu")
    assert done.returncode == 0, done.stderr
    (run,) = run_folders(tmp_path)
    name = str(run.relative_to(tmp_path))
    assert re.fullmatch(r"outputs/digits/\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d\.\d{6}-0", name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs"]
    assert status(run)["status"] == "done"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["bits_per_dim"]["n"] == 360
    assert metrics["denoising_ratio/0.5"]["value"] > 0
    for shown in ("bits_per_dim", "denoising_ratio/0.5", "best.ckpt", "samples.png", "tensorboard"):
        assert shown in done.stdout
    assert (run / "samples.png").is_file()

    # in its own folder: the checkpoint's configuration, the word on top, the metrics appended
    done = command("train", "resume=last", "trainer.max_steps=6", "evaluate=null", cwd=run)
    assert done.returncode == 0, done.stderr
    assert run_folders(tmp_path) == [run]
    content = checkpoint.read(run / "checkpoints" / "last.ckpt")
    config = content["flowdiff"]["config"]
    assert content["global_step"] == config["decay_steps"] == 6
    assert config["flow"]["n_flows"] == 2
    assert "ELU" in config["denoiser"]["flow"]["activation"]["_target_"]
    steps = {line.split(",")[[*head].index("step")] for head, *lines in [rows(run)] for line in lines}
    assert {"2", "4", "6"} <= steps

    # from elsewhere: a new folder, the old one as it was
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    before = (run / "csv" / "metrics.csv").read_bytes()
    last = os.path.relpath(run / "checkpoints" / "last.ckpt", elsewhere)
    done = command("train", f"ckpt_path={last}", "trainer.max_steps=8", "lr=0.0005", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    (new,) = run_folders(elsewhere)
    stored = checkpoint.read(new / "checkpoints" / "last.ckpt")
    assert stored["global_step"] == 8
    assert stored["flowdiff"]["config"]["lr"] == 0.0005
    assert stored["flowdiff"]["config"]["flow"] == config["flow"]
    assert stored["flowdiff"]["config"]["run_dir"] == str(new)
    assert (run / "csv" / "metrics.csv").read_bytes() == before


def rows(run: Path) -> list[object]:
    head, *lines = (run / "csv" / "metrics.csv").read_text().splitlines()
    return [head.split(","), *lines]


def test_a_sweep_with_a_job_that_fails(command: Command, tmp_path: Path) -> None:
    done = command("train", "--multirun", *QUICK, "trainer.max_steps=2", "flow.n_flows=1,0,2")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("job 1: flow.n_flows=0: ")
    assert "Traceback" not in done.stdout + done.stderr
    runs = run_folders(tmp_path)
    assert [run.name for run in runs] == ["0", "1", "2"]
    assert [status(run)["status"] for run in runs] == ["done", "failed", "done"]
    assert str(status(runs[1])["error"]).startswith("flow.n_flows=0: ")
    assert "Traceback" in (runs[1] / "train.log").read_text()
    assert not any(sign in str(run.relative_to(tmp_path)) for run in runs for sign in "=,[")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(number: signal.Signals, command: Command, tmp_path: Path) -> None:
    process = start(tmp_path, "--multirun", *QUICK, "trainer.max_steps=100000", "seed=0,1")
    said = process.outputs[0]
    wait_for(lambda: said.exists() and "\nstep 3/" in said.read_text(), process)
    process.send_signal(number)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 128 + number
    assert "Traceback" not in out + err
    (run,) = run_folders(tmp_path)  # the sweep's second job was not begun
    assert status(run)["status"] == "interrupted"
    last = run / "checkpoints" / "last.ckpt"
    step = checkpoint.read(last)["global_step"]
    assert step >= 3
    shown = next(line for line in out.splitlines() if "python -m flowdiff.train ckpt_path=" in line)
    assert str(last) in shown
    go_on = command("train", *shown.split("flowdiff.train ")[1].split(), f"trainer.max_steps={step + 2}")
    assert go_on.returncode == 0, go_on.stderr
    new = next(r for r in run_folders(tmp_path) if r != run)
    assert checkpoint.read(new / "checkpoints" / "last.ckpt")["global_step"] == step + 2


def test_a_killed_run_leaves_a_checkpoint_to_go_on_from(command: Command, tmp_path: Path) -> None:
    words = (*QUICK, "callbacks.checkpoints.every_n_steps=1")
    process = start(tmp_path, *words, "trainer.max_steps=100000")
    wait_for(lambda: list(tmp_path.rglob("last.ckpt")), process)
    time.sleep(0.3)
    (run,) = run_folders(tmp_path)
    second = command("train", "resume=last", cwd=run)
    assert second.returncode == 1 and f"in use by process {process.pid} on " in second.stderr
    assert second.stderr.count("\n") == 1 and status(run)["pid"] == process.pid
    process.kill()
    process.communicate()
    (run,) = run_folders(tmp_path)
    assert status(run)["status"] == "running"
    last = run / "checkpoints" / "last.ckpt"
    step = checkpoint.read(last)["global_step"]
    logged = [int(row.split(",")[rows(run)[0].index("step")]) for row in rows(run)[1:]]
    assert logged and max(logged) >= step - 1, "what the checkpoint has is on the disk"
    assert (run / ".lock").is_file()
    done = command("train", f"ckpt_path={last}", f"trainer.max_steps={step + 5}", f"hydra.run.dir={run}")
    assert done.returncode == 0, done.stderr
    logged = [int(row.split(",")[rows(run)[0].index("step")]) for row in rows(run)[1:] if row.startswith(",")]
    assert logged == list(range(2, step + 5 + 1, 2)), "none lost, none twice"
    assert not (run / ".lock").exists() and status(run)["status"] == "done"


def test_a_full_disk_is_one_line(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    words = (*QUICK, "trainer.max_steps=2")
    done = run_on_a_full_disk("train", words, tmp_path, tmp_path_factory.mktemp("said"), room=30_000)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("can't write ")
    assert "Traceback" not in done.stderr
    (run,) = run_folders(tmp_path)
    assert status(run)["status"] == "failed"
    assert not list(run.rglob("*.tmp"))


def test_the_debug_preset_and_a_configuration_from_elsewhere(command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine" / "activation").mkdir(parents=True)
    text = "_target_: flowdiff.bijections.Softplus\n_partial_: true\nbeta: 3.0\nleak: 0.3\n"
    (tmp_path / "mine" / "activation" / "soft.yaml").write_text(text)
    words = (*BARE, "flow.n_flows=1", "flow.width=16", "trainer.max_steps=2", "activation=soft")
    done = command("train", "--config-dir", "mine", *words)
    assert done.returncode == 0, done.stderr
    (run,) = run_folders(tmp_path)
    config = checkpoint.read(run / "checkpoints" / "last.ckpt")["flowdiff"]["config"]
    assert config["flow"]["activation"]["beta"] == 3.0

    # it goes on where the folder is given again, and says so where it isn't
    go_on = (f"ckpt_path={run}/checkpoints/last.ckpt", "trainer.max_steps=3")
    done = command("train", *go_on)
    assert done.returncode == 1
    expected = (
        f"ckpt_path={run}/checkpoints/last.ckpt: was trained with --config-dir={tmp_path / 'mine'}: give it again"
    )
    assert done.stderr.strip() == expected
    done = command("train", "--config-dir", "mine", *go_on)
    assert done.returncode == 0, done.stderr
