"""Classes of a user's own: a checkpoint may name them where the user gives the folder that does."""

from pathlib import Path

import pytest
import torch

import flowdiff
from flowdiff.errors import ConfigError, FlowdiffError
from flowdiff.model import vocabulary
from tests.helpers.trained import checkpoint, edited

ARCTAN = """
from torch import Tensor

from flowdiff.bijections import Activation


class OwnArctan(Activation):
    def raw(self, x: Tensor) -> Tensor:
        return x.atan()

    def raw_slope(self, x: Tensor) -> Tensor:
        return 1 / (1 + x.square())
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module, conf/ that names its class, and a checkpoint of a model that has it."""
    monkeypatch.setattr(vocabulary, "_further", {})
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_activations.py").write_text(ARCTAN)
    node = {"_target_": "own_activations.OwnArctan", "_partial_": True, "leak": 0.3}
    (tmp_path / "conf" / "activation").mkdir(parents=True)
    (tmp_path / "conf" / "activation" / "own.yaml").write_text("\n".join(f"{k}: {v}" for k, v in node.items()))

    def change(content: dict) -> None:
        content["flowdiff"]["config"]["denoiser"]["flow"]["activation"] = node

    edited(checkpoint("digits"), tmp_path / "own.ckpt", change)
    return tmp_path


def test_a_notebook_names_the_folder(own: Path) -> None:
    with pytest.raises(FlowdiffError, match=r"own_activations\.OwnArctan.* give --config-dir, or config_dir to"):
        flowdiff.load(own / "own.ckpt")
    model = flowdiff.load(own / "own.ckpt", config_dir=own / "conf")
    assert {type(m).__name__ for m in model.modules()} >= {"OwnArctan"}
    x = torch.randn(3, 1, 8, 8)
    assert not torch.equal(model(x, 1.0), flowdiff.load(checkpoint("digits"))(x, 1.0))
    assert model.sample(2, quiet=True, num_steps=2).isfinite().all(), "the folder is known from then on"


def test_a_folder_that_is_not_there(own: Path) -> None:
    with pytest.raises(ConfigError, match=r"config_dir=.*nowhere: there is no such folder"):
        flowdiff.load(own / "own.ckpt", config_dir=own / "nowhere")
