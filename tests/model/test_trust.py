"""What a stored file may say, piece by piece: classes, signatures, words, places."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flowdiff.commands import resume, sweeps
from flowdiff.commands.configuration import to_plain
from flowdiff.commands.evaluate import run_of
from flowdiff.commands.export import export
from flowdiff.data.mnist import MNIST
from flowdiff.errors import ConfigError, FlowdiffError
from flowdiff.metrics.fidelity import check_tensors
from flowdiff.model import api, safe_construction, seal
from flowdiff.model import checkpoint as checkpoints
from flowdiff.model.budget import Budget
from flowdiff.model.facts import check_entry
from flowdiff.model.opening import load_data
from flowdiff.model.vocabulary import vocabulary
from flowdiff.runs import places
from flowdiff.samplers import masks
from tests.helpers.command_lines import BARE, TINY, Compose, environment
from tests.helpers.configs import choices, composed, node
from tests.helpers.hostile import MARK, WORDS, Runs
from tests.helpers.runs import train
from tests.helpers.trained import checkpoint, edited

# -- what conf/ names ---------------------------------------------------------------------------------------


def test_a_group_may_name_what_its_files_name_and_those_they_refer_to() -> None:
    targets = vocabulary().targets
    assert "flowdiff.bijections.ELU" in targets["denoiser"], "by way of the flow"
    assert "flowdiff.metrics.FrechetDistance" in targets["callbacks"], "by way of a list of defaults"
    assert not any(
        target.startswith(("flowdiff.training.callbacks.average", "lightning")) for target in targets["denoiser"]
    )
    assert targets["trainer"] == {"lightning.pytorch.Trainer"}
    assert "${run_dir}/checkpoints" in vocabulary().interpolations


def test_what_is_outside_is_left_out_unless_the_user_has_said_it(tmp_path: Path) -> None:
    node = {"_target_": "flowdiff.data.MNIST", "root": "/x", "download": True, "batch_size": 5}
    assert safe_construction.find_outside("dataset", node) == {"dataset.root": "/x", "dataset.download": True}
    assert safe_construction.drop_outside("dataset", node) == {"_target_": "flowdiff.data.MNIST", "batch_size": 5}
    built = safe_construction.build("dataset", node, outside=True)
    assert isinstance(built, MNIST) and built.root == "/x"
    with pytest.raises(FlowdiffError, match=r"dataset\.extra=1: unknown key"):
        safe_construction.build("dataset", node | {"extra": 1})


@pytest.mark.parametrize("name", choices("metrics"))
def test_a_metric_says_whether_it_fetches(name: str) -> None:
    for key, config in node("metrics", name).items():
        assert safe_construction.build("metrics", config).fetches == (key in ("fid", "kid", "isc", "prc"))


@pytest.mark.parametrize("flow", choices("flow"))
def test_every_flow_is_built_within_the_budget_of_its_own_tensors(flow: str) -> None:
    config = to_plain(composed("config", f"flow={flow}", "run_dir=unused"))
    state = checkpoints.build_denoiser(config, (1, 8, 8), 10).state_dict()
    checkpoints.check_all_finite(state)
    with Budget.of(state):
        checkpoints.build_denoiser(config, (1, 8, 8), 10)
    with pytest.raises(FlowdiffError, match="a larger model than the file holds"), Budget(-(1 << 22), 0):
        checkpoints.build_denoiser(config, (1, 8, 8), 10)


# -- who wrote it ---------------------------------------------------------------------------------------------


def test_a_signature_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWDIFF_CACHE", str(tmp_path / "mine"))
    content = {"a": [1, 2.5, None, "x", (True, {"b": torch.arange(4.0)})], "c": torch.ones(2, dtype=torch.bfloat16)}
    assert seal.own_key(make=False) is None
    key = seal.own_key(make=True)
    assert key == seal.own_key(make=True) and (tmp_path / "mine" / "key").stat().st_mode & 0o077 == 0
    found = seal.add_seal(content, key)
    assert seal.check(found) and seal.is_own(found)
    assert seal.check(json.loads(json.dumps(seal.add_seal({"a": [1, 2.5, "x"]}, None))))
    assert not seal.is_own(seal.add_seal(content, None)) and not seal.check(content)
    for key_, value in (("a", [1]), ("c", torch.ones(2))):
        with pytest.raises(FlowdiffError, match="damaged"):
            seal.check(found | {key_: value})
    monkeypatch.setenv("FLOWDIFF_CACHE", str(tmp_path / "another"))
    assert seal.check(found) and not seal.is_own(found)
    assert not (tmp_path / "another").exists(), "a key is made for a run that says something to be followed"


def images(folder: Path) -> Path:
    for kind in ("a", "b"):
        (folder / kind).mkdir(parents=True)
        for i in range(12):
            pixels = np.random.default_rng(i).integers(0, 255, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / kind / f"{i}.png")
    return folder


def test_a_folder_of_images_is_found_again_by_who_has_trained_on_it(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWDIFF_CACHE", str(tmp_path / "mine"))
    root = images(tmp_path / "images")
    said = ("dataset=images", f"dataset.root={root}", "dataset.channels=1", "dataset.batch_size=8")
    train(config(*BARE, *said, "augment=none", "trainer.max_steps=1", "trainer.limit_val_batches=1"))
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    model = api.load(path)
    assert model.own and len(load_data(model).images("train")[0])
    exported = Path(export(composed("export", f"ckpt_path={path}", f"output_dir={tmp_path}/exported"))["output_dir"])
    assert api.load(exported).own
    strange = api.load(edited(path, tmp_path / "strange.ckpt", lambda content: None))
    with pytest.raises(ConfigError, match=r"dataset\.root=.*images: is only what the checkpoint says"):
        load_data(strange)
    assert len(load_data(strange, str(root)).images("train")[0])
    monkeypatch.setenv("FLOWDIFF_CACHE", str(tmp_path / "another"))
    assert not api.load(path).own and not api.load(exported).own


def test_what_this_user_has_said_of_processes_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWDIFF_CACHE", str(tmp_path))
    said = ["trainer=ddp", "logger=wandb", "callbacks.checkpoints.folder=/x", "lr=0.5", f"name={'n' * 9}"]

    def change(content: dict[str, Any]) -> None:
        content["flowdiff"]["overrides"] = said
        for group in ("trainer", "logger"):
            del content["flowdiff"]["source"][group]  # as they were before these words

    path = edited(checkpoint("digits"), tmp_path / "x.ckpt", change)
    cfg = composed("config", f"ckpt_path={path}", f"run_dir={tmp_path}/run")
    strange, kept, _ = resume.resume(cfg, [])
    assert (strange.trainer.strategy, set(strange.logger), kept) == ("auto", {"tensorboard", "csv"}, said[3:])
    content = torch.load(path, weights_only=True)
    torch.save(seal.add_seal(content, seal.own_key(make=True)), path)
    own, kept, _ = resume.resume(cfg, [])
    assert own.trainer.strategy == "ddp" and set(own.logger) == {"wandb"}
    assert own.callbacks.checkpoints.folder == f"{tmp_path}/run/checkpoints", "where a run writes is never stored"
    assert kept == [said[0], said[1], *said[3:]]


# -- words --------------------------------------------------------------------------------------------------


def test_stored_values_are_taken_for_values(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        source = content["flowdiff"]["source"]
        source |= {"lr": 0.25, "num_steps": "many", "name": "${oc.env:HOME}", "seed": [1], "ckpt_path": "/x"}
        source["callbacks"]["checkpoints"]["folder"] = "/elsewhere"
        source["logger"] = {"csv": {"_target_": "os.system", "save_dir": "/elsewhere", "version": "../x"}}
        source["trainer"] |= {"default_root_dir": "/elsewhere", "devices": 4, "_target_": "os.system"}
        source["dataset"]["_target_"] = "os.system"
        source["flow"]["activation"] = {"_target_": "os.system"}

    path = edited(checkpoint("digits"), tmp_path / "x.ckpt", change)
    cfg, *_ = resume.resume(composed("config", f"ckpt_path={path}", f"run_dir={tmp_path}/run"), [])
    assert (cfg.lr, cfg.num_steps, cfg.name, cfg.seed) == (0.25, 64, "digits", 0)
    assert cfg.callbacks.checkpoints.folder == f"{tmp_path}/run/checkpoints" == f"{cfg.logger.csv.save_dir}/checkpoints"
    assert (cfg.trainer.default_root_dir, cfg.trainer.devices) == (f"{tmp_path}/run", 1)
    assert "os.system" not in str(cfg) and "elsewhere" not in str(cfg)


# -- readers ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_yaml_is_data(tmp_path: Path) -> None:
    file = tmp_path / "multirun" / "digits" / "day" / "time" / "multirun.yaml"
    file.parent.mkdir(parents=True)
    laughs = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    for text in (
        f"!!python/object/apply:os.system ['touch {MARK}']",
        "a0: &a0 [x]\n" + laughs,
        "[" * 100_000,
        "hydra: {overrides: {task: '${oc.env:HOME}'}}",
        "hydra: {overrides: {task: {_target_: os.system}}}",
    ):
        file.write_text(text)
        found = sweeps.started_by(["lr=1"], "config", tmp_path / "multirun")
        assert found is None
    file.write_text("hydra: {overrides: {task: [lr=1]}}")
    assert sweeps.started_by(["lr=1"], "config", tmp_path / "multirun") == file.parent
    assert not Path(MARK).exists()


def test_an_entry_of_a_model_is_checked_whole() -> None:
    entry = torch.load(checkpoint("digits"), weights_only=True)["flowdiff"]
    assert check_entry(entry) is entry
    for name in ("config", "shape", "num_classes", "levels", "data"):
        with pytest.raises(FlowdiffError, match=f"says nothing of its {name}"):
            check_entry({key: value for key, value in entry.items() if key != name})


def test_a_users_own_weights_are_read_as_tensors_first(tmp_path: Path) -> None:
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Runs()))
    torch.save({"a": Runs()}, tmp_path / "zip.pth")
    for name in ("evil.pth", "zip.pth", "none.pth", "."):
        with pytest.raises(ConfigError, match=r"metrics\.fid\.weights_path=.*not a file of tensors") as caught:
            check_tensors("metrics.fid.weights_path", tmp_path / name)
        assert "\n" not in str(caught.value)
    torch.save({"a": torch.ones(2), "b": np.ones(3)}, tmp_path / "good.pth")
    check_tensors("metrics.fid.weights_path", tmp_path / "good.pth")
    assert not Path(MARK).exists()


def test_masks_and_data_of_strangers(tmp_path: Path) -> None:
    seeds = torch.arange(1)
    np.save(tmp_path / "objects.npy", np.array([Runs()], dtype=object), allow_pickle=True)
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (100000000000,), }"
    start = b"\x93NUMPY\x01\x00" + (len(header) + 10).to_bytes(2, "little")
    (tmp_path / "huge.npy").write_bytes(start + header + b" " * 9 + b"\n")
    os.mkfifo(tmp_path / "fifo.npy")
    for name in ("objects", "huge", "fifo"):
        with pytest.raises(ConfigError, match=f"mask=.*{name}.npy"):
            masks.missing_pixels(str(tmp_path / f"{name}.npy"), (1, 8, 8), seeds)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte").write_bytes(b"\x00\x00\x08\x03" + b"\xff" * 12 + b"1234")
    with pytest.raises(FlowdiffError, match=r"dataset\.root=.*no MNIST files"):
        MNIST(str(tmp_path)).images("train")
    (raw / "train-images-idx3-ubyte").unlink()
    os.mkfifo(raw / "train-images-idx3-ubyte")
    with pytest.raises(FlowdiffError, match=r"dataset\.root=.*no MNIST files"):
        MNIST(str(tmp_path)).images("train")
    assert not Path(MARK).exists()


def test_the_command_line_follows_no_word_of_a_stranger(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "evil.yaml").write_text(f"_target_: os.system\ncommand: touch {MARK}\n")
    for name, said in (("a", WORDS[:1]), ("b", ["hydra.searchpath=[file://.]", "dataset=evil"])):
        edited(checkpoint("digits"), tmp_path / f"{name}.ckpt", lambda c, w=said: c["flowdiff"]["overrides"].extend(w))
        done = command("train", f"ckpt_path={name}.ckpt", cwd=tmp_path)
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        assert "its command line holds the word" in done.stderr and "not followed" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"dataset", "a.ckpt", "b.ckpt"}


@pytest.mark.slow
def test_no_module_is_imported_from_a_run_folder(tmp_path: Path) -> None:
    for name in ("omegaconf", "yaml", "hydra"):
        (tmp_path / f"{name}.py").write_text(f"open('{MARK}', 'w').close()\n")
    words = [sys.executable, "-m", "flowdiff.train", "resume=last"]
    done = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stderr.startswith("resume=last: "), done.stderr
    assert not (tmp_path / MARK).exists()


# -- places -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word",
    [
        "callbacks.checkpoints.folder={0}/elsewhere",
        "logger.csv.save_dir={0}/elsewhere",
        "logger.csv.version=../../elsewhere",
        "logger.tensorboard.save_dir={0}",
        "trainer.default_root_dir={0}",
        "callbacks.checkpoints.folder={0}/run/../elsewhere",
        "callbacks.checkpoints.folder={0}/run/link",
    ],
)
def test_a_run_writes_below_its_folder_even_if_it_is_told_otherwise(word: str, config: Compose, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "link").symlink_to(tmp_path / "elsewhere")
    word = word.format(tmp_path)
    with pytest.raises(ConfigError, match="must lie in the run folder") as caught:
        train(config("callbacks=minimal", "metrics=[]", word))
    assert str(caught.value).startswith(word.split("=")[0])
    assert not list((tmp_path / "elsewhere").iterdir())


def test_links_that_lead_out_of_a_run_folder(tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    (run / "checkpoints").mkdir(parents=True)
    other.mkdir()
    (run / "inside").symlink_to("checkpoints")
    places.check_links(run)
    assert run_of(str(checkpoint("digits"))) == str(checkpoint("digits").parent.parent)
    shutil.copy(checkpoint("digits"), run / "checkpoints" / "last.ckpt")
    (run / "evaluate").symlink_to(other)
    assert run_of(str(run / "checkpoints" / "last.ckpt")) == "outputs"
    with pytest.raises(FlowdiffError, match="evaluate: a link that leads out of the run folder"):
        places.check_links(run)


def test_a_run_goes_on_in_its_own_folder_whatever_the_old_one_said(config: Compose, tmp_path: Path) -> None:
    victim = tmp_path / "victim" / "last.ckpt"
    victim.parent.mkdir()
    victim.write_text("precious")

    def change(content: dict[str, Any]) -> None:
        content["flowdiff"]["overrides"] = [f"callbacks.checkpoints.folder={victim.parent}", *TINY, *BARE]
        content["flowdiff"]["source"]["callbacks"]["checkpoints"]["folder"] = str(victim.parent)

    path = edited(checkpoint("digits"), tmp_path / "x.ckpt", change)
    cfg = composed("config", f"ckpt_path={path}", f"run_dir={tmp_path}/run")
    result = train(resume.resume(cfg, ["trainer.max_steps=21"])[0])
    assert result["last"] == f"{tmp_path}/run/checkpoints/last.ckpt" and Path(result["last"]).is_file()
    assert victim.read_text() == "precious" and len(list(victim.parent.iterdir())) == 1
