"""A folder of one's own pictures from training to sampling and measuring: classes by name, data found again."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import flowdiff
from flowdiff.commands.evaluate import evaluate
from flowdiff.commands.resume import resume
from flowdiff.commands.sample import sample
from flowdiff.data.labels import resolve_labels, typed_labels
from flowdiff.errors import ConfigError, FlowdiffError
from tests.helpers.command_lines import BARE, TINY
from tests.helpers.configs import composed
from tests.helpers.runs import train

NUMBERS = [str(i) for i in range(1, 13)]


def written(folder: Path, names: list[str], each: int = 10) -> Path:
    """Pictures of one colour a class, and some files that are none."""
    for c, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            Image.new("RGB", (4, 4), (20 * c, 255 - 20 * c, 100)).save(folder / name / f"{i}.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of the pictures and a checkpoint of a training that was given it as `.`."""
    folder = tmp_path_factory.mktemp("own")
    data = written(folder / "pets", ["cat", "dog", "emu"])
    words = [*TINY, *BARE, "dataset=images", "dataset.root=.", "dataset.batch_size=8", "trainer.max_steps=2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(data)
        patch.delenv("FLOWDIFF_DATA", raising=False)
        train(composed("config", *words, f"run_dir={folder / 'run'}"), words)
    return data, folder / "run" / "checkpoints" / "last.ckpt"


def drawn(ckpt: Path, folder: Path, *words: str) -> dict[str, object]:
    sample(composed("sample", f"ckpt_path={ckpt}", f"output_dir={folder}", "num_samples=4", "num_steps=2", *words))
    return json.loads((folder / "samples.json").read_text())


def labels_of(folder: Path) -> list[int]:
    import numpy as np

    return np.load(folder / "samples.npz")["labels"].tolist()


def test_the_checkpoint_knows_the_classes_and_where_the_data_are(run: tuple[Path, Path]) -> None:
    data, ckpt = run
    entry = torch.load(ckpt, weights_only=True)["flowdiff"]
    assert entry["class_names"] == ["cat", "dog", "emu"] and entry["data"] == "pets"
    assert entry["notes"] == ["classes: 0 = cat (10), 1 = dog (10), 2 = emu (10)", "left out: 1 .txt"]
    assert entry["config"]["dataset"]["root"] == entry["source"]["dataset"]["root"] == str(data)


def test_what_is_said_at_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = written(tmp_path / "pets", ["10", "9", "only"])
    for file in sorted((data / "only").iterdir())[1:]:
        file.unlink()
    words = [*TINY, *BARE, "dataset=images", f"dataset.root={data}", "dataset.batch_size=8", "trainer.max_steps=1"]
    train(composed("config", *words, f"run_dir={tmp_path / 'run'}"), words)
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if "run folder" in line)
    assert lines[start + 1 : start + 4] == [
        "classes: 0 = 9 (10), 1 = 10 (10), 2 = only (1)",
        "left out: 1 .txt",
        "warning: too few images for one in validation and one in the test: only (1)",
    ]
    assert any("gaussianised would begin worse than standardized" in line for line in lines[:start])


def test_classes_by_name(run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, ckpt = run
    about = drawn(ckpt, tmp_path / "one", "class_label=dog")
    assert labels_of(tmp_path / "one") == [1] * 4 and about["class_names"] == ["cat", "dog", "emu"]
    assert "classes [1] (dog)" in capsys.readouterr().out
    drawn(ckpt, tmp_path / "mixed", "class_label=[emu,0]")
    assert labels_of(tmp_path / "mixed") == [2, 0, 2, 0]
    with pytest.raises(ConfigError) as caught:
        drawn(ckpt, tmp_path / "wrong", "class_label=dgo")
    assert str(caught.value) == (
        "class_label=dgo: must be a class from 0 to 2, a name (cat, dog, emu), a list, balanced (each in turn) or none "
        "(no class); did you mean dog?"
    )
    model = flowdiff.load(ckpt)
    by_name, by_number = (model.sample(2, labels=w, num_steps=2, quiet=True) for w in ("emu", 2))
    assert torch.equal(by_name, by_number)
    with pytest.raises(ConfigError, match="labels=cow: must be a class .*cat, dog, emu"):
        model.sample(1, labels=["cat", "cow"])


def test_the_data_are_found_again(run: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From another folder, whatever the environment says; and where a typed data_root says."""
    data, ckpt = run
    monkeypatch.chdir(tmp_path)
    words = [f"ckpt_path={ckpt}", "metrics=[denoising]", "num_steps=1", "batch_size=8"]
    for root in (None, str(tmp_path / "downloads")):
        monkeypatch.setenv("FLOWDIFF_DATA", root) if root else monkeypatch.delenv("FLOWDIFF_DATA", raising=False)
        assert evaluate(composed("evaluate", *words, f"output_dir={tmp_path}/out"))["metrics"]
    with pytest.raises(FlowdiffError, match=f"^data_root={tmp_path}/gone: there is no folder"):
        evaluate(composed("evaluate", *words, f"output_dir={tmp_path}/out", f"data_root={tmp_path}/gone"))
    shutil.copytree(data, tmp_path / "moved")
    words[1:] = [
        "task=inpaint",
        "task.n_corrector=0",
        "task.num_steps=1",
        "num_samples=1",
        f"output_dir={tmp_path}/out",
    ]
    with pytest.raises(FlowdiffError, match=f"^data_root={tmp_path}/gone: there is no folder"):
        sample(composed("sample", *words, f"data_root={tmp_path}/gone"))
    sample(composed("sample", *words, f"data_root={tmp_path}/moved"))
    (tmp_path / "moved" / "dog").rename(tmp_path / "moved" / "wolf")
    with pytest.raises(FlowdiffError, match="its classes are cat, emu, wolf, those of the model cat, dog, emu"):
        sample(composed("sample", *words, f"data_root={tmp_path}/moved"))


def test_a_run_goes_on_from_elsewhere(run: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, ckpt = run
    monkeypatch.chdir(tmp_path)
    cfg = composed("config", f"ckpt_path={ckpt}", f"run_dir={tmp_path}")
    assert resume(cfg, [])[0].dataset.root == str(data)
    moved = resume(composed("config", f"ckpt_path={ckpt}", f"run_dir={tmp_path}"), [f"dataset.root={tmp_path}"])
    assert moved[0].dataset.root == str(tmp_path)


def test_other_classes_are_said_when_a_run_goes_on(
    run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, ckpt = run
    shutil.copytree(data, tmp_path / "pets")
    (tmp_path / "pets" / "cat").rename(tmp_path / "pets" / "wolf")
    words = [*TINY, *BARE, "dataset=images", f"dataset.root={tmp_path}/pets", "dataset.batch_size=8"]
    words += ["trainer.max_steps=3", f"ckpt_path={ckpt}"]
    train(composed("config", *words, f"run_dir={tmp_path / 'run'}"), words)
    said = capsys.readouterr().out
    assert "warning: the checkpoint's classes are cat, dog, emu, those of the data dog, emu, wolf" in said


def test_downloaded_data_are_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from flowdiff.training.building import find_root, keep_environment

    source = {"root": "${oc.env:FLOWDIFF_DATA,data}"}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOWDIFF_DATA", "here")
    found = find_root({"root": "here"})
    assert found == {"root": f"{tmp_path}/here"} and keep_environment(source, found) == source
    monkeypatch.delenv("FLOWDIFF_DATA")
    assert keep_environment(source, find_root({"root": "data"})) == {"root": f"{tmp_path}/data"}
    assert find_root({"size": 3}) == {"size": 3} == keep_environment({"size": 3}, {"size": 3})


# -- numbers and names of classes -------------------------------------------------------------------------------


def test_a_number_that_is_another_classs_name() -> None:
    """Typed, it is refused; in Python a number is a number and a string a name."""
    with pytest.raises(ConfigError) as caught:
        typed_labels(7, NUMBERS)
    assert str(caught.value) == (
        "class_label=7: is the number of the class '8' and the name of class 6: quote the name that is meant, "
        """class_label="'8'" or class_label="'7'\""""
    )
    assert composed("sample", "class_label='7'").class_label == "7"  # as a shell hands it on
    assert resolve_labels(typed_labels("7", NUMBERS), 1, 12, names=NUMBERS).tolist() == [6]
    assert resolve_labels(typed_labels([0, 12], NUMBERS), 2, 12, names=NUMBERS).tolist() == [0, 11]
    with pytest.raises(ConfigError, match="class_label=3: is the number"):
        typed_labels([0, 3], NUMBERS)
    assert resolve_labels(7, 1, 12, names=NUMBERS).tolist() == [7]
    assert resolve_labels(torch.tensor([7]), 1, 12, names=NUMBERS).tolist() == [7]
    assert resolve_labels("7", 1, 12, names=NUMBERS).tolist() == [6]
    digits = [str(c) for c in range(10)]
    assert typed_labels(7, digits) == 7 and resolve_labels("7", 1, 10, names=digits).tolist() == [7]


@pytest.mark.parametrize(
    "value, names, expected",
    [
        (True, ["cat", "true"], 1),
        (1.5, ["1.0", "1.5"], 1),
        (["none"], ["cat", "none"], 1),
        ("cafe\u0301", ["caf\u00e9", "x"], 0),
        (3, ["3", "x"], 0),
    ],
)
def test_names_that_look_like_something_else(value: object, names: list[str], expected: int) -> None:
    assert resolve_labels(typed_labels(value, names), 1, len(names), names=names).tolist() == [expected]


NO_CLASS = ("cow", "", True, 1.5, {"a": 1}, [], [[0], "cat"], ["cat", None], object(), 2, -1, 10**30)


@pytest.mark.parametrize("value", NO_CLASS)
def test_what_is_no_class(value: object) -> None:
    with pytest.raises(ConfigError, match="^class_label=") as caught:
        resolve_labels(typed_labels(value, ["cat", "dog"]), 2, 2, names=["cat", "dog"])
    assert "(cat, dog)" in str(caught.value) and "\n" not in str(caught.value)


def test_words_and_doubles() -> None:
    names = ["none", "balanced", "x", "x"]
    assert resolve_labels("none", 3, 4, names=names) is None
    assert resolve_labels("balanced", 3, 4, names=names).tolist() == [0, 1, 2]
    with pytest.raises(ConfigError, match="class_label=x: the classes 2, 3 have this name: give a number"):
        resolve_labels("x", 3, 4, names=names)
