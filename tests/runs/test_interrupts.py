"""Ctrl-C ends each command in one line, by 130, with its status written, whenever it comes and however often."""

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from flowdiff.runs import interrupts
from flowdiff.runs.interrupts import Interrupted, Interrupts
from flowdiff.training import run
from tests.helpers import forked
from tests.helpers.command_lines import BARE, TINY, Compose, environment, run_folders, start, wait_for
from tests.helpers.runs import train
from tests.helpers.trained import checkpoint

QUICK = (*TINY, "callbacks=minimal", "logger=default", "evaluate=null", "trainer.max_steps=100000")
HELD = """import time
from flowdiff.export import main
from flowdiff.model import export

def read_model(*given):
    time.sleep(100)

export.read_model = read_model
main()
"""  # an export takes less than a second, which a busy machine may not give a test in time
NOISE = ("Traceback", "KeyboardInterrupt", "graceful", "leaked", "resource_tracker", "Exception ignored", "Fatal")


def ended(process: forked.Forked, code: int = 130) -> str:
    """What it has said, without noise."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, (out, err)
    assert not [word for word in NOISE if word in out + err], (out, err)
    return out + err


def statuses(root: Path) -> list[str]:
    return [json.loads((run / "status.json").read_text())["status"] for run in run_folders(root)]


def began(process: forked.Forked) -> Callable[[], bool]:
    said = process.outputs[0]
    return lambda: said.exists() and "\nstep 3/" in said.read_text()


@pytest.mark.slow
def test_twice_in_a_row_stops_at_once_and_the_command_can_be_pasted(tmp_path: Path) -> None:
    folder = tmp_path / "a b=c,[d'(e"
    folder.mkdir()
    process = start(folder, *QUICK, "callbacks.checkpoints.every_n_steps=2", "hydra.run.dir=run")
    wait_for(began(process), process)
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    said = ended(process)
    assert said.count("stopped at step") == 1 and "interrupted" not in said
    assert statuses(folder) == ["interrupted"]
    shown = next(line for line in said.splitlines() if "python -m flowdiff.train" in line)
    *_, module, word = shlex.split(shown)
    asked = OverridesParser.create().parse_override(word)
    assert (module, asked.key_or_group) == ("flowdiff.train", "ckpt_path")
    assert asked.value() == str(folder / "run" / "checkpoints" / "last.ckpt") and Path(asked.value()).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("module", ["sample", "evaluate", "export"])
def test_other_commands_end_in_one_line(module: str, tmp_path: Path) -> None:
    words = (f"ckpt_path={checkpoint('digits')}", f"output_dir={tmp_path}/out")
    words += ("num_samples=400", "num_steps=5000") if module == "sample" else ()
    words += ("metrics=[fd]", "num_steps=5000") if module == "evaluate" else ()
    said = (tmp_path / "said.out", tmp_path / "said.err")
    (tmp_path / "held_export.py").write_text(HELD)
    name = "held_export" if module == "export" else f"flowdiff.{module}"
    process = forked.Forked(name, words, tmp_path, environment(), said)
    wait_for((tmp_path / "out" / "status.json").exists, process)
    for _ in range(3):
        process.send_signal(signal.SIGINT)
    assert ended(process).splitlines()[-1] == "interrupted"
    assert statuses(tmp_path) == ["interrupted"]


@pytest.mark.slow
def test_while_the_command_is_imported(tmp_path: Path) -> None:
    call, mapped = [sys.executable, "-m", "flowdiff.train", "trainer.max_steps=100000"], Path("/proc/self/maps")
    if not mapped.exists():
        pytest.skip("there is no /proc here to see what a process has imported")
    with subprocess.Popen(
        call, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        loaded = Path(f"/proc/{process.pid}/maps")
        while "_yaml" not in loaded.read_text():  # which OmegaConf imports, before Hydra
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "interrupted\n")


@pytest.mark.slow
def test_the_workers_of_a_sweep_save_first(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ("--multirun", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1,2", "hydra.sweep.dir=sweep")
    call, said = [sys.executable, "-m", "flowdiff.train", *words, *QUICK], tmp_path / "said"
    with (
        said.open("w") as out,
        subprocess.Popen(call, cwd=tmp_path, env=environment(), stdout=out, stderr=out) as process,
    ):
        while said.read_text().count("\nstep 3/") < 2:
            assert process.poll() is None, said.read_text()
            time.sleep(0.1)
        assert [path.parent.name for path in sorted(tmp_path.glob("sweep/*/.lock"))] == ["0", "1"]
        process.send_signal(signal.SIGINT)
        process.wait(60)
    shown = said.read_text()
    assert process.returncode == 130 and not [word for word in NOISE if word in shown], shown
    assert shown.count("SIGINT: saving after this step") == 1
    assert shown.splitlines()[-1] == "interrupted; the same command with resume_sweep=true goes on"
    assert statuses(tmp_path) == ["interrupted"] * 2
    assert len(list(tmp_path.rglob("last.ckpt"))) == 2
    assert not list(tmp_path.rglob(".lock"))


def test_in_the_last_measurement_the_way_to_measure_is_said(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "evaluate_run", lambda *given: signal.raise_signal(signal.SIGINT))
    words = (*BARE[:-2], "metrics=[denoising]", "trainer.max_steps=1", "trainer.limit_val_batches=1")
    with pytest.raises(Interrupted), Interrupts():
        train(config(*words))
    said = f"to measure:\n  python -m flowdiff.evaluate ckpt_path={tmp_path}/run/checkpoints/best.ckpt\n"
    assert capsys.readouterr().out.endswith(f"stopped at step 1, before the last metrics; {said}")


def test_signals_on_the_way_out_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUBMITIT_EXECUTOR", raising=False)
    with Interrupts() as outer:
        with pytest.raises(Interrupted), Interrupts() as inner:
            inner.patient = True
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
        assert outer.received == signal.SIGINT
        signal.raise_signal(signal.SIGINT)  # while the job writes its status
        monkeypatch.setattr(interrupts, "PATIENCE", 0.0)
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)


def test_an_import_is_not_torn(monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    with Interrupts() as signals, pytest.raises(Interrupted, match="SIGINT"):
        with signals.defer():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            done.append("imported")
        done.append("too far")
    assert done == ["imported"]
