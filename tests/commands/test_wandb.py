"""What Weights & Biases is given, read back from the files of an offline run."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.command_lines import TINY, Run

FILE_HEADER = 7  # ":W&B", a magic number, a version
BLOCK = 1 << 15  # LevelDB's log: https://github.com/google/leveldb/blob/main/doc/log_format.md
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(file: Path) -> Iterator[Any]:
    """The records of a run's .wandb file: a log of LevelDB's, of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, parts = file.read_bytes(), FILE_HEADER, b""
    while at + 7 <= len(content):
        if BLOCK - at % BLOCK < 7:  # no room for a header: zeros
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        at += 7 + length
        assert kind in (FULL, FIRST, MIDDLE, LAST) and at <= len(content)
        parts += content[at - length : at]
        if kind in (FULL, LAST):
            yield Record.FromString(parts)
            parts = b""


@pytest.mark.slow
def test_pictures_final_metrics_and_names_of_sweeps(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    words = (*TINY, "logger=wandb", "logger.wandb.offline=true", "metrics=[bits_per_dim]", "trainer.max_steps=2")
    words += ("trainer.val_check_interval=1", "callbacks.sample_grid.rows=1", "--multirun", "seed=3,4")
    code, out, err = run("train", *words, f"hydra.sweep.dir='{tmp_path}/sweep'")
    assert code == 0, out + err
    for job, name in enumerate(("seed-3", "seed-4")):
        (file,) = (tmp_path / "sweep" / str(job)).rglob("run-*.wandb")
        kept = list(records(file))
        assert [record.run.display_name for record in kept if record.HasField("run")][-1] == name
        assert [record.exit.exit_code for record in kept if record.HasField("exit")] == [0]
        items = [item for record in kept if record.HasField("history") for item in record.history.item]
        history = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
        assert history["final/bits_per_dim"] > 0 and history["val/bits_per_dim"] > 0
        for kind in ("samples", "denoising"):
            (path,) = history[f"images/{kind}/filenames"]
            assert (file.parent / "files" / path).read_bytes().startswith(b"\x89PNG")
