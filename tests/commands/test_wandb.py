"""What Weights & Biases is given, read back from the files of an offline run."""

import json
from pathlib import Path

import pytest

from tests.helpers.command_lines import BARE, TINY, Run


def records(file: Path) -> list:
    """The records of a run's .wandb file."""
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    store, found = DataStore(), []
    store.open_for_scan(str(file))
    while (data := store.scan_data()) is not None:
        record = Record()
        record.ParseFromString(data)
        found.append(record)
    return found


@pytest.mark.slow
def test_pictures_final_metrics_and_names_of_sweeps(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    bare = [word for word in BARE if not word.startswith(("callbacks", "logger", "metrics", "evaluate"))]
    words = (*TINY, *bare, "logger=wandb", "logger.wandb.offline=true", "metrics=[bits_per_dim]")
    words += (
        "trainer.max_steps=2",
        "trainer.val_check_interval=1",
        "callbacks.sample_grid.rows=1",
        "--multirun",
        "seed=3",
    )
    code, out, err = run("train", *words, f"hydra.sweep.dir='{tmp_path}/sweep'")
    assert code == 0, out + err
    (file,) = (tmp_path / "sweep").rglob("run-*.wandb")
    kept = records(file)
    assert [record.run.display_name for record in kept if record.HasField("run")][-1] == "seed-3"
    history = {}
    for record in kept:
        if record.HasField("history"):
            history |= {
                item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
            }
    assert history["final/bits_per_dim"] > 0
    for name in ("samples", "denoising"):
        (path,) = history[f"images/{name}"]["filenames"]
        assert (file.parent / "files" / path).read_bytes().startswith(b"\x89PNG")
