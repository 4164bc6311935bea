"""What a training says of the words that it was given, and makes of them."""

from pathlib import Path

import pytest

from flowdiff.commands.configuration import to_plain
from flowdiff.model import checkpoint
from flowdiff.training import building
from tests.helpers.command_lines import BARE, TINY, Run
from tests.helpers.configs import composed

pytestmark = pytest.mark.slow


def test_options_may_stand_between_words(run: Run, tmp_path: Path) -> None:
    code, _, err = run("train", *TINY, *BARE, "trainer.max_steps=1", "--multirun", "flow.n_flows=1,2")
    assert code == 0, err
    assert len(list(tmp_path.rglob("last.ckpt"))) == 2


def test_epochs_count(run: Run, tmp_path: Path) -> None:
    for words, said, steps in (
        (["trainer.max_epochs=2"], "training for 2 steps: trainer.max_epochs=2\n", 2),
        (
            ["trainer.max_epochs=2", "trainer.max_steps=1"],
            "trainer.max_epochs=2 and trainer.max_steps=1, the smaller",
            1,
        ),
        (
            ["trainer.max_epochs=2", "trainer.max_steps=9"],
            "trainer.max_epochs=2 and trainer.max_steps=9, the smaller",
            2,
        ),
    ):
        folder = tmp_path / "-".join(words)
        code, out, err = run("train", *TINY, *BARE, "dataset.batch_size=1257", *words, f"hydra.run.dir='{folder}'")
        assert code == 0 and said in out, out + err
        assert (folder / "checkpoints" / "best.ckpt").is_file(), "it was validated at its end"
        content = checkpoint.read(folder / "checkpoints" / "last.ckpt")
        assert content["global_step"] == steps == content["flowdiff"]["config"]["decay_steps"]


def test_the_name_and_the_recipe_of_other_data(run: Run, tmp_path: Path) -> None:
    code, out, err = run(
        "train", *TINY, *BARE, "dataset=toy", "dataset.num_train=64", "dataset.num_test=8", "trainer.max_steps=1"
    )
    assert code == 0, err
    assert "recipe: experiment=digits; made for these data is experiment=toy\n" in out
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["toy"]


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (["flow.n_flows=3", "activation=elu"], []),
        (
            ["denoiser=mlp", "flow.n_flows=3", "activation=elu", "conditioning=none", "lr=1e-3"],
            [
                "flow.n_flows=3: not used, MLPDenoiser has no flow",
                "activation=elu: not used, MLPDenoiser has no activation",
            ],
        ),
        (["flow=stack", "flow.flows.pixels.n_flows=2", "activation=elu"], []),
    ],
)
def test_a_part_that_the_model_does_not_have_is_said(words: list[str], lines: list[str]) -> None:
    assert building.list_unused(to_plain(composed("config", *words, "run_dir=.")), words) == lines


def test_what_is_said_of_a_part_is_printed(run: Run) -> None:
    code, out, err = run("train", *TINY, *BARE, "trainer.max_steps=1", "denoiser=mlp", "flow.n_flows=3")
    assert code == 0, err
    assert "\nflow.n_flows=3: not used, MLPDenoiser has no flow\n" in out
