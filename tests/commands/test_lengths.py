"""weights=ema:0.08: an average of a length that is chosen when it is asked for."""

from pathlib import Path

import pytest

import flowdiff
from flowdiff.model import checkpoint
from tests.helpers.command_lines import BARE, Compose, Run
from tests.helpers.runs import train
from tests.helpers.states import equal


@pytest.mark.slow
def test_the_commands_take_a_length(config: Compose, tmp_path: Path, run: Run) -> None:
    words = (*BARE, "callbacks=averages", "callbacks.sample_grid=null", "callbacks.denoising_grid=null")
    train(config(*words, "trainer.max_steps=16", "lr=1e-2"))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    path = f"ckpt_path={last}"
    code, out, err = run("evaluate", path, "metrics=[bits_per_dim]", "weights=ema:0.08", "split=val")
    assert code == 0 and "ema:0.08 weights of last.ckpt" in out, err
    code, out, err = run("export", path, "output_dir=out", "weights=ema:0.08")
    assert code == 0, err
    model = flowdiff.load(tmp_path / "out", weights="ema:0.08")
    expected = checkpoint.read_model(last, "ema:0.08").state
    assert model.weights == "ema:0.08" and equal(dict(model.denoiser.state_dict()), expected)
    for more, line in (
        ((path, "weights=ema:0.9"), "weights=ema:0.9: the length of an average is from 0.01 to 0.25"),
        ((path, "weights=ema:2"), "weights=ema:2: must be one of ema, raw, or ema:0.08"),
        (("ckpt_path=out", "weights=ema:0.05"), "out was exported with the ema:0.08 weights alone"),
    ):
        code, out, err = run("export", *more, "output_dir=other")
        assert code != 0 and line in err and err.count("\n") <= 2, err
