"""The guide's flow beside the default and the U-Net: what is counted, and that the tables agree with themselves."""

import csv
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from experiments.benchmarks import contenders, guide
from flowdiff.model.vocabulary import config_dir


@pytest.mark.slow
def test_a_benchmark_of_speed_from_end_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guide, "SAMPLES", 10)
    words = ["--repeats", "2", "--seconds", "0.2", "--steps", "1,3", "-o", str(tmp_path)]
    assert guide.main(words) == 0
    rows = list(csv.DictReader((tmp_path / "guide_digits.csv").open(newline="")))
    numbers = [f"{key}_{name}" for key in ("value", "ratio") for name in ("min", "median", "max")]
    counts = ["nfe", "nfe_forward", "nfe_gradient", "inversions"]
    assert list(rows[0]) == ["measure", "sampler", "steps", "model", *counts, *numbers]

    three = ("guide", "default", "unet")
    of = {(row["measure"], row["sampler"], row["steps"], row["model"]): row for row in rows}
    assert len(of) == len(rows)
    training = {(what, "", "", name) for what in ("images_per_second", "seconds_per_epoch") for name in three}
    walks = {("seconds_per_100", "ancestral", steps, name) for steps in ("1", "3") for name in three}
    inversions = {("seconds_per_100", "inversion", "", name) for name in ("guide", "default")}
    assert set(of) == training | walks | inversions
    for (_, sampler, steps, model), row in of.items():
        for key in ("value", "ratio"):
            low, middle, high = (float(row[f"{key}_{name}"]) for name in ("min", "median", "max"))
            assert 0 < low <= middle <= high
            assert model != "default" or key != "ratio" or low == high == 1
        found = [row[key] for key in counts]
        gradients = "0" if model == "unet" else steps
        expected = {"": [""] * 4, "ancestral": [f"{steps}.0", steps, gradients, "0"], "inversion": ["2.0", *"111"]}
        assert found == expected[sampler]
    for name in three:
        speed, epoch = (of[what, "", "", name] for what in ("images_per_second", "seconds_per_epoch"))
        assert float(speed["value_min"]) * float(epoch["value_max"]) == pytest.approx(1257)

    text = (tmp_path / "guide_digits.md").read_text()
    assert "experiment=guide_mnist dataset=digits flow.data_dim=64`, 240,000 parameters, batches of 256" in text
    assert "| ancestral | 3 | unet | 3 | 3 | 0 | 0 | " in text and "| default | " in text and "| 1 (1–1) |" in text
    assert (tmp_path / "guide_digits.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "round 2 of 2" in printed and "training samples" not in printed


@pytest.mark.parametrize("dataset", contenders.DATASETS)
def test_its_contenders_compose(dataset: str) -> None:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        made = {name: compose("config", overrides=words) for name, words in guide.commands(dataset).items()}
    assert [config.dataset._target_ for config in made.values()] == [made["default"].dataset._target_] * 3
    assert (made["guide"].dataset.batch_size, made["guide"].lr, made["guide"].flow.n_flows) == (256, 1e-4, 3)
    assert made["guide"].flow.data_dim == {"digits": 64, "mnist": 784}[dataset]
    assert made["unet"].denoiser._target_.endswith("UNetDenoiser") and made["unet"].loss._target_.endswith("Denoising")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--steps", "10,x"], "--steps=10,x: must be integers >= 1 with commas, as in 10,20,50"),
        (["--steps", "0"], "--steps=0: must be a whole number from 1 up"),
        (["--repeats", "0"], "--repeats=0: must be a whole number from 1 up"),
        (["--seconds", "-1"], "--seconds=-1.0: must be a number above 0"),
    ],
)
def test_a_wrong_option_is_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert guide.main(words) == 1
    assert capsys.readouterr().err == line + "\n"
