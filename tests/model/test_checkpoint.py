"""What a checkpoint holds, and that reading one neither runs code nor fails in a puzzling way."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from flowdiff.errors import FlowdiffError
from flowdiff.files import write_atomically
from flowdiff.model import checkpoint
from flowdiff.training.checkpoint_files import AtomicCheckpointIO
from tests.helpers.command_lines import BARE, TINY, Compose
from tests.helpers.configs import composed
from tests.helpers.runs import train
from tests.helpers.trained import edited


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a few steps."""
    folder = tmp_path_factory.mktemp("run")
    train(composed("config", f"run_dir={folder}", *TINY, *BARE, "trainer.max_steps=4", "lr=0.01"))
    return folder / "checkpoints" / "last.ckpt"


def plain_values(node: object) -> bool:
    if isinstance(node, dict):
        return all(type(key) in (str, int) and plain_values(value) for key, value in node.items())
    if isinstance(node, list):
        return all(map(plain_values, node))
    return node is None or type(node) in (str, int, float, bool)


def test_a_checkpoint_holds_what_a_stranger_needs(trained: Path) -> None:
    content = torch.load(trained, weights_only=True)
    entry = content["flowdiff"]
    assert plain_values(entry)
    assert plain_values(content["hyper_parameters"])
    assert "${" not in str(entry["config"])
    assert entry["config"]["flow"]["width"] == 16
    assert entry["shape"] == [1, 8, 8]
    assert (entry["num_classes"], entry["levels"], entry["data"]) == (10, 17, "digits")
    assert {"torch", "lightning", "python"} <= entry["versions"].keys()
    assert entry["git"] is None or len(entry["git"].rstrip("+")) == 40
    asked, read = (checkpoint.git_commit(ask) for ask in (True, False))
    assert (asked is None) == (read is None) and (asked or "").rstrip("+") == (read or "").rstrip("?")


def test_ema_and_raw_weights_are_read_back(trained: Path) -> None:
    (ema, facts), (raw, _) = checkpoint.load(trained), checkpoint.load(trained, weights="raw")
    assert facts.step == 4
    assert facts.shape == (1, 8, 8)
    assert not ema.training
    x, labels = torch.randn(3, 1, 8, 8), torch.tensor([0, 5, 9])
    one, other = (denoiser(x, 0.7, labels) for denoiser in (ema, raw))
    assert one.shape == x.shape
    assert not torch.equal(one, other)
    content = torch.load(trained, weights_only=True)
    for loaded, key in ((ema, "state_dict"), (raw, "current_model_state")):
        for name, tensor in loaded.state_dict().items():
            assert torch.equal(tensor, content[key][f"denoiser.{name}"])
    with pytest.raises(FlowdiffError, match="weights=best: must be one of ema, raw"):
        checkpoint.load(trained, weights="best")


def test_whitening_statistics_travel_with_it(trained: Path, config: Compose) -> None:
    precondition: Any = checkpoint.load(trained)[0].precondition
    assert 0.3 < float(precondition.sigma_data) < 1.0
    assert any(buffer.numel() >= 64 and float(buffer.float().std()) > 0 for buffer in precondition.buffers())


def rewritten(trained: Path, path: Path, change: Any) -> Path:
    return edited(trained, path, change)


class Runs:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "subprocess.run",
        "flowdiff.model.checkpoint.os.system",
        "flowdiff.training.run.train",  # a function
        "flowdiff.model.checkpoint.subprocess.Popen",
        "hydra.utils.instantiate",
        "torch.load",
        "torch.nn.Module.__init__",
    ],
)
def test_a_hostile_configuration_is_not_built(target: str, trained: Path, tmp_path: Path) -> None:
    proof = tmp_path / "proof"

    def change(content: dict[str, Any]) -> None:
        flow = content["flowdiff"]["config"]["denoiser"]["flow"]
        flow["activation"] = {"_target_": target, "_args_": [f"touch {proof}"]}

    with pytest.raises(FlowdiffError, match="its configuration names"):
        checkpoint.load(rewritten(trained, tmp_path / "hostile.ckpt", change))
    assert not proof.exists()


def test_interpolations_are_not_followed(trained: Path, tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["flowdiff"]["config"]["denoiser"]["flow"]["width"] = "${oc.env:HOME}"

    with pytest.raises(FlowdiffError, match="an interpolation"):
        checkpoint.load(rewritten(trained, tmp_path / "hostile.ckpt", change))


def test_pickled_objects_are_not_run(trained: Path, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    path = rewritten(trained, tmp_path / "hostile.ckpt", lambda content: content.update(more=Runs(proof)))
    with pytest.raises(FlowdiffError, match="Python objects, which are not run"):
        checkpoint.load(path)
    assert not proof.exists()


def test_what_is_no_checkpoint_says_so(trained: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(trained.read_bytes()[:-5000])
    empty = tmp_path / "empty.ckpt"
    empty.touch()
    text = tmp_path / "text.ckpt"
    text.write_text("not a checkpoint")
    foreign = tmp_path / "foreign.ckpt"
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, foreign)
    newer = rewritten(trained, tmp_path / "newer.ckpt", lambda content: content["flowdiff"].update(format=99))
    lacking = rewritten(trained, tmp_path / "lacking.ckpt", lambda content: content["state_dict"].clear())
    cases = {
        tmp_path / "missing.ckpt": "no such file",
        tmp_path: "a folder; give the file",
        cut: "not a readable checkpoint; is it cut off",
        empty: "not a readable checkpoint",
        text: "not a readable checkpoint",
        foreign: "not a checkpoint of flowdiff",
        newer: "its format is 99",
        lacking: "the model can't be rebuilt from it",
    }
    for path, words in cases.items():
        with pytest.raises(FlowdiffError, match=words) as caught:
            checkpoint.load(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    io = AtomicCheckpointIO()
    io.save_checkpoint({"a": torch.ones(3)}, path)

    def full(file: Any) -> None:
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, full)
    assert torch.equal(torch.load(path)["a"], torch.ones(3))
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]
