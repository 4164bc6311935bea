"""Classes of a user's own: a checkpoint may name them where the user gives the folder that does."""

from pathlib import Path

import pytest
import torch

import flowdiff
from flowdiff.commands.composition import compose
from flowdiff.errors import ConfigError, FlowdiffError
from flowdiff.model import vocabulary
from flowdiff.model.construction import SETTINGS
from flowdiff.samplers import Heun, Sampler, Schedule
from tests.helpers.configs import build, choices
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


def test_a_sampler_of_ones_own_is_chosen_by_its_name(own: Path) -> None:
    (own / "conf" / "sampler").mkdir()
    node = "_target_: flowdiff.samplers.Heun\nnum_steps: ${num_steps}\ns_churn: 7.0\n"
    (own / "conf" / "sampler" / "mine.yaml").write_text(node)
    model = flowdiff.load(checkpoint("digits"))
    with pytest.raises(ConfigError, match="sampler=mine: must be one of ancestral, ddim, .*, mala, mcmc, ula$"):
        model.batched("mine")
    flowdiff.load(own / "own.ckpt", config_dir=own / "conf")
    with pytest.raises(ConfigError, match="sampler=main: must be one of ancestral, ddim, .*, mala, mcmc, mine, ula$"):
        model.batched("main")
    sampler = model.batched("mine").sampler
    assert type(sampler).__name__ == "Heun" and vars(sampler) == vars(Heun(model.config["num_steps"], s_churn=7.0))
    assert vars(model.batched("mine", num_steps=5).sampler) == vars(Heun(5, s_churn=7.0))


def test_of_two_files_of_one_name_that_of_conf_counts(own: Path) -> None:
    (own / "conf" / "sampler").mkdir()
    (own / "conf" / "sampler" / "heun.yaml").write_text("_target_: flowdiff.samplers.Euler\nnum_steps: 3\n")
    vocabulary.add_folder(own / "conf")
    assert vocabulary.files_of("sampler")["heun"] == vocabulary.config_dir() / "sampler" / "heun.yaml"
    chosen = compose(["sampler=heun"], "config").sampler
    assert chosen._target_ == vocabulary.choice_of("sampler", "heun")["_target_"] == "flowdiff.samplers.Heun"


@pytest.mark.parametrize(("group", "base"), [("sampler", Sampler), ("schedule", Schedule)])
def test_a_name_is_what_its_file_says(group: str, base: type) -> None:
    """In a notebook by its name, on the command line by its file: the same object."""
    model = flowdiff.load(checkpoint("digits"))
    for name in choices(group):
        chosen = getattr(model.batched(**{group: name}), group)
        built = build(group, name, **{key: model.config[key] for key in SETTINGS})
        assert isinstance(chosen, base) and type(chosen) is type(built) and vars(chosen) == vars(built)
