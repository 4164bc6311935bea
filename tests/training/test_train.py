"""Training in-process: every choice trains, the average is what is looked at, resuming is exact, NaNs stop
the run.
"""

import csv
import math
import os
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from flowdiff.data import emoji
from flowdiff.data.downloaded import TorchvisionData
from flowdiff.denoisers.score_flow import ScoreFlow
from flowdiff.errors import ConfigError, FlowdiffError, NonFiniteError, how_to_install
from flowdiff.flows.bases import Normal
from flowdiff.model import checkpoint
from flowdiff.model.vocabulary import config_dir
from flowdiff.objectives.losses import AnnealedMixture
from flowdiff.training.diffusion import Diffusion
from tests.helpers.autoencoders import saved
from tests.helpers.command_lines import BARE, Compose
from tests.helpers.ready_made import READY_MADE
from tests.helpers.runs import train
from tests.helpers.states import equal, states

#: Words that a choice needs beside it to train in a test: its own sizes in place of those of the default flow.
SMALL = {
    "flow=linear": ["flow.n_flows=1"],
    "flow=conv": ["flow.n_flows=2", "flow.width=8"],
    "flow=glow": ["flow.n_flows=2", "flow.width=8"],
    "flow=spectral": ["flow.n_flows=2", "flow.width=8", "flow.leading=16"],
    "flow=stack": ["flow.flows.pixels.n_flows=2", "flow.flows.leading.n_flows=2", "flow.flows.leading.leading=16"],
    "flow=coupling": ["flow.n_flows=2", "flow.width=16"],
    "flow=pixelcnn": ["flow.width=8", "flow.depth=1"],
    "flow=pixelcnn_coupling": ["flow.n_flows=2", "flow.width=16", "flow.pixels.width=8", "flow.pixels.depth=1"],
    "flow=zuko": ["flow.n_flows=2", "flow.width=16"],
    "denoiser=unet": ["denoiser.width=8", "denoiser.multipliers=[1]"],
    "denoiser=mlp": ["denoiser.width=16", "denoiser.depth=1"],
    "callbacks=autoencoder": ["autoencoder=kl"],
    "dataset=emoji": ["dataset.size=8", "flow.n_flows=2", "flow.width=16"],
    "experiment=emoji": ["dataset.size=8", "flow.n_flows=1", "flow.width=16"],
    "dataset=patches": ["dataset.size=8", "flow.n_flows=2", "flow.width=16"],
}
#: Choices that another test trains.
ELSEWHERE = {
    "trainer=ddp": "test_processes.py: it starts processes of its own",
    "trainer=fsdp": "test_processes.py: it starts processes of its own",
    "experiment=mnist_latent": "test_latent_models.py: it needs an autoencoder",
    "experiment=sdxl_latent": "test_latent_models.py: it needs an autoencoder",
    "experiment=guide_cifar10": "test_colour.py: it needs files of CIFAR-10",
    "experiment=cifar10": "test_colour.py: it needs files of CIFAR-10",
    "dataset=cifar10": "test_colour.py: it needs files of CIFAR-10",
}
GROUPS = (
    "activation",
    "augment",
    "autoencoder",
    "base",
    "conditioning",
    "dataset",
    "denoiser",
    "experiment",
    "first_stage",
    "flow",
    "loss",
    "noise",
    "optimizer",
    "precondition",
    "weighting",
)
GROUPS += ("logger", "callbacks", "debug", "trainer", "metrics")


def choices() -> list[str]:
    """`group=choice` for every YAML file in conf/."""
    folder = config_dir()
    found = [f"{group}={file.stem}" for group in GROUPS for file in sorted((folder / group).glob("*.yaml"))]
    assert len(found) > 50
    return found


def test_groups_are_all_known() -> None:
    folders = {path.name for path in config_dir().iterdir() if path.is_dir() and list(path.glob("*.yaml"))}
    sampling = {"sampler", "schedule", "task"}  # test_sample.py and test_tasks.py
    assert folders - {"hydra", "__pycache__"} - sampling == set(GROUPS)


@pytest.mark.slow
@pytest.mark.parametrize("choice", choices())
def test_every_choice_trains(choice: str, config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if choice in ELSEWHERE:
        pytest.skip(f"in tests/{ELSEWHERE[choice]}")
    group, _, name = choice.partition("=")
    words = [choice if group != "metrics" else f"metrics=[{name}]", *needed(choice, tmp_path)]
    if "WANDB_MODE" not in os.environ:
        monkeypatch.setenv("WANDB_MODE", "offline")
    if group in ("experiment", "dataset") and "mnist" in name and not os.environ.get("FLOWDIFF_DATA"):
        pytest.skip("FLOWDIFF_DATA is not set")
    load = TorchvisionData.load  # the statistics of 60,000 images take ten seconds
    monkeypatch.setattr(
        TorchvisionData, "load", lambda data: {s: (k[:2000], y[:2000]) for s, (k, y) in load(data).items()}
    )
    if choice == "trainer=gpu" and not torch.cuda.is_available():
        with pytest.raises(FlowdiffError, match="use trainer=cpu"):
            train(config(*words, tiny=False))
        return
    if choice == "logger=wandb":
        pytest.importorskip("wandb")
    if name == "emoji" and any(find_spec(package) is None for package in emoji.PACKAGES):
        with pytest.raises(FlowdiffError, match=rf"^dataset=emoji needs .*: {re.escape(how_to_install('emoji'))}$"):
            train(config(*words, tiny=False))
        return
    if group == "denoiser" and name in READY_MADE:
        with pytest.raises(FlowdiffError, match="frozen"):
            train(config(*words, tiny=False))
        return
    result = train(config(*words, tiny=False))
    assert result["step"] == 2
    assert all(torch.isfinite(torch.tensor(value)) for value in result["validation"].values())


def needed(choice: str, tmp_path: Path) -> list[str]:
    """The words that make a choice small and fast."""
    group, _, name = choice.partition("=")
    words = ["trainer.max_steps=2", "dataset.batch_size=8", "num_steps=2", "evaluate=null"]
    words += ["trainer.limit_val_batches=1"] if choice != "debug=limit" else []
    if group not in ("callbacks", "debug"):
        words += ["callbacks=minimal"]
    if group not in ("logger", "debug"):
        words += ["logger=none"]
    if group not in ("metrics",):
        words += ["metrics=[]"]
    if choice in SMALL:
        words += SMALL[choice]
    elif group != "experiment":
        words += ["flow.n_flows=2", "flow.width=16"]
    if choice == "dataset=images":
        words += some_images(tmp_path)
    if choice == "first_stage=autoencoder_kl":
        words += [f"first_stage.path={saved(tmp_path / 'vae')}", f"first_stage.cache={tmp_path}/cache"]
    return words


def some_images(folder: Path) -> list[str]:
    """A folder of images of two classes; the words that name it."""
    from PIL import Image
    from torchvision.transforms.functional import to_pil_image

    generator = torch.Generator().manual_seed(0)
    for kind in ("a", "b"):
        (folder / "images" / kind).mkdir(parents=True)
        for i in range(40):
            pixels = torch.randint(0, 256, (3, 8, 8), generator=generator, dtype=torch.uint8)
            image: Image.Image = to_pil_image(pixels)
            image.save(folder / "images" / kind / f"{i}.png")
    return [f"dataset.root={folder}/images"]


# -- resuming -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "whole", "words"),
    [
        (7, 14, ()),  # in the middle of the first epoch (19 batches)
        (19, 38, ()),  # at the end of it
        (25, 50, ("dropout=0.1", "loss=likelihood")),  # in the middle of the second, with random networks
        (12, 24, ("trainer.val_check_interval=4",)),  # right after a validation
        (7, 14, ("optimizer=muon", "weighting=learned", "warmup_steps=3")),
        (6, 12, ("trainer.accumulate_grad_batches=3", "loss=annealed_mixture")),  # whose weights move with the step
    ],
)
def test_resumed_run_equals_the_whole_run_bit_for_bit(
    first: int, whole: int, words: tuple[str, ...], config: Compose, tmp_path: Path
) -> None:
    words = (*BARE, f"decay_steps={whole}", *words)
    train(config(*words, f"trainer.max_steps={whole}", run_dir=tmp_path / "whole"))
    train(config(*words, f"trainer.max_steps={first}", run_dir=tmp_path / "first"))
    last = tmp_path / "first" / "checkpoints" / "last.ckpt"
    assert not equal(states(last), states(tmp_path / "whole" / "checkpoints" / "last.ckpt"))
    go_on = (*words, f"trainer.max_steps={whole}", f"ckpt_path={last}")
    train(config(*go_on, run_dir=tmp_path / "second"))
    for name in ("last", "best"):
        one, other = (states(tmp_path / run / "checkpoints" / f"{name}.ckpt") for run in ("whole", "second"))
        if name == "last" or one["global_step"] == other["global_step"]:
            assert equal(one, other)


def test_the_loss_is_told_how_much_of_the_training_is_done(config: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    terms = AnnealedMixture.terms
    monkeypatch.setattr(
        AnnealedMixture, "terms", lambda self, model, batch: seen.append(batch.progress) or terms(self, model, batch)
    )
    words = (*BARE, "loss=annealed_mixture", "trainer.max_steps=5", "decay_steps=4", "trainer.val_check_interval=2")
    train(config(*words, "trainer.limit_val_batches=1"))
    told = [float(p) for p in seen if isinstance(p, torch.Tensor)]
    validations = [p for p in seen if not isinstance(p, torch.Tensor)]
    assert told == [0.0, 0.25, 0.5, 0.75, 1.0] and validations and set(validations) == {1.0}


def test_resuming_from_the_best_checkpoint_is_exact(config: Compose, tmp_path: Path) -> None:
    words = (*BARE, "decay_steps=20", "trainer.max_steps=20", "trainer.val_check_interval=6")
    train(config(*words, "trainer.limit_val_batches=1", run_dir=tmp_path / "whole"))
    best = tmp_path / "whole" / "checkpoints" / "best.ckpt"
    assert states(best)["global_step"] in (6, 12, 18)  # written while a validation ran
    train(config(*words, f"ckpt_path={best}", run_dir=tmp_path / "second"))
    one, other = (states(tmp_path / run / "checkpoints" / "last.ckpt") for run in ("whole", "second"))
    assert equal(one, other)


ACTNORM = ("flow=glow", "flow.n_flows=1", "flow.width=8", "dataset.batch_size=64", *BARE)


def actnorm(path: Path) -> dict[str, Tensor]:
    """What a checkpoint's raw and averaged weights hold of the actnorm layers."""
    content, kept = checkpoint.read(path), ("log_scale", "shift", "initialised")
    return {
        f"{kind}.{name}": value
        for kind in ("state_dict", "current_model_state")
        for name, value in content[kind].items()
        if name.rpartition(".")[2] in kept
    }


@pytest.mark.slow
def test_data_initialise_actnorm_in_a_new_run_only(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flowdiff.flows.actnorm import ActNorm

    calls = []
    original = ActNorm._initialise
    monkeypatch.setattr(ActNorm, "_initialise", lambda self, *given: (calls.append(self), original(self, *given)))
    still = (*ACTNORM, "lr=1e-12", "weight_decay=0")  # what is saved is what the data have set
    train(config(*still, "trainer.max_steps=2", tiny=False, run_dir=tmp_path / "first"))
    assert len(calls) == 3
    last = tmp_path / "first" / "checkpoints" / "last.ckpt"
    values = actnorm(last)
    assert len(values) == 2 * 3 * 3
    assert all(v.all() for name, v in values.items() if name.endswith("initialised"))
    assert all(v.abs().max() > 1e-3 for name, v in values.items() if not name.endswith("initialised"))
    torch.rand(5)
    train(config(*still, "trainer.max_steps=2", tiny=False, run_dir=tmp_path / "again"))
    assert equal(values, actnorm(tmp_path / "again" / "checkpoints" / "last.ckpt"))
    assert len(calls) == 6
    # going on, with other data in the first batch
    go_on = (*still, f"ckpt_path={last}", "trainer.max_steps=3", "seed=1")
    train(config(*go_on, tiny=False, run_dir=tmp_path / "second"))
    checkpoint.load(last)
    assert len(calls) == 6
    for name, value in actnorm(tmp_path / "second" / "checkpoints" / "last.ckpt").items():
        torch.testing.assert_close(value, values[name], rtol=0, atol=1e-9, msg=name)


@pytest.mark.slow
def test_a_run_with_actnorm_resumes_bit_for_bit(config: Compose, tmp_path: Path) -> None:
    words = (*ACTNORM, "decay_steps=6")
    train(config(*words, "trainer.max_steps=6", tiny=False, run_dir=tmp_path / "whole"))
    train(config(*words, "trainer.max_steps=3", tiny=False, run_dir=tmp_path / "first"))
    last = tmp_path / "first" / "checkpoints" / "last.ckpt"
    go_on = (*words, "trainer.max_steps=6", f"ckpt_path={last}")
    train(config(*go_on, tiny=False, run_dir=tmp_path / "second"))
    one, other = (states(tmp_path / run / "checkpoints" / "last.ckpt") for run in ("whole", "second"))
    assert equal(one, other)


def test_a_changed_learning_rate_wins(config: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (*BARE, "decay_steps=100", "warmup_steps=0")
    train(config(*words, "trainer.max_steps=3", "lr=1e-3", run_dir=tmp_path / "a"))
    last = tmp_path / "a" / "checkpoints" / "last.ckpt"
    go_on = (*words, f"ckpt_path={last}", "trainer.max_steps=4", "lr=1e-5", "weight_decay=0.5")
    train(config(*go_on, run_dir=tmp_path / "b"))
    group = checkpoint.read(tmp_path / "b" / "checkpoints" / "last.ckpt")["optimizer_states"][0]["param_groups"][0]
    assert group["lr"] == pytest.approx(1e-5, rel=0.01)
    assert group["weight_decay"] == 0.5
    out = capsys.readouterr().out
    assert "lr: 1e-05 from now on (the checkpoint had 0.001)" in out
    assert "weight_decay: 0.5 from now on" in out


def test_a_run_that_goes_on_in_its_folder_keeps_its_metrics(config: Compose, tmp_path: Path) -> None:
    words = ("callbacks=minimal", "logger=csv", "metrics=[]", "decay_steps=8", "trainer.val_check_interval=4")
    train(config(*words, "trainer.max_steps=4"))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    train(config(*words, f"ckpt_path={last}", "trainer.max_steps=8"))
    with (tmp_path / "run" / "csv" / "metrics.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [int(row["step"]) for row in rows if row["train/loss"]] == [2, 4, 6, 8]
    assert len([row for row in rows if row["val/loss"]]) == 2


# -- what must not happen -------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    where: str, config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*BARE, "trainer.max_steps=9", "callbacks.checkpoints.every_n_steps=2")
    original = Diffusion.training_step

    def poisoned(self: Diffusion, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, object]:
        if self.global_step == 4:
            parameter = next(self.denoiser.parameters())
            if where == "gradient":
                handle = parameter.register_hook(lambda grad: grad * torch.nan)
                self.handle = handle
            else:
                parameter.data.fill_(torch.nan)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Diffusion, "training_step", poisoned)
    with pytest.raises(NonFiniteError, match=rf"{where}.* at step 5: the last good checkpoint is .*last.ckpt"):
        train(config(*words))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    content = checkpoint.read(last)
    assert content["global_step"] == 4
    weights = (*content["state_dict"].values(), *content["current_model_state"].values())
    assert all(bool(tensor.isfinite().all()) for tensor in weights)


def test_a_run_in_bfloat16_has_the_bits_of_float32(config: Compose, tmp_path: Path) -> None:
    words = ("trainer.precision=bf16-mixed", "trainer.max_steps=12", "trainer.val_check_interval=12", "lr=1e-2")
    result = train(config(*BARE, *words))
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert all(v.dtype != torch.bfloat16 for v in checkpoint.read(path)["state_dict"].values())
    model = checkpoint.load(path)[0]
    assert any(bool((p != 0).all()) for n, p in model.named_parameters() if n.endswith("last.weight"))
    k, labels = load_digits(return_X_y=True)
    x = torch.as_tensor(k[:256], dtype=torch.float32).view(-1, 1, 8, 8) / 8.5 - 1 + 1 / 17
    bits = []
    for low in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=low):
            nats = -model.log_prob(x, 0.002, torch.as_tensor(labels[:256])).double()  # type: ignore[operator]
            bits.append(float(nats.mean()) / 64 / math.log(2) + math.log2(17 / 2))
    assert abs(bits[0] - bits[1]) < 0.01
    assert bits[0] == pytest.approx(result["validation"]["val/bits_per_dim"], abs=0.5)


def test_seed_decides_and_seed_zero_is_a_seed(config: Compose, tmp_path: Path) -> None:
    def weights(run: str, seed: int) -> dict[str, object]:
        torch.rand(3 if run == "again" else 5)  # whatever was drawn before
        train(config(*BARE, "trainer.max_steps=3", f"seed={seed}", run_dir=tmp_path / run))
        return states(tmp_path / run / "checkpoints" / "last.ckpt")

    first = weights("first", 0)
    assert equal(first, weights("again", 0))
    assert not equal(first, weights("other", 1))
    assert "PL_GLOBAL_SEED" not in os.environ


@pytest.mark.parametrize("word", ["conditioning=concat", "denoiser=unet", "activation.leak=0"])
def test_without_a_likelihood_the_default_loss_says_what_it_does(
    word: str, config: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["denoiser.width=8", "denoiser.multipliers=[1]"] if word == "denoiser=unet" else []
    train(config(*BARE, word, *small, "trainer.max_steps=1", "trainer.limit_val_batches=1"))
    assert "no likelihood of x: training with loss=denoising" in capsys.readouterr().out
    stored = checkpoint.read(tmp_path / "run" / "checkpoints" / "last.ckpt")["flowdiff"]["config"]
    assert stored["loss"] == {"_target_": "flowdiff.objectives.Denoising"}


def test_an_experiment_made_for_flows_trains_the_unet(config: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("loss=likelihood", "sampler=inversion_denoise", "denoiser=unet", "denoiser.width=4", "trainer.max_steps=1")
    train(config(*words, *BARE))
    said = capsys.readouterr().out
    assert "training with loss=denoising" in said
    assert "sampling with sampler=ancestral num_steps=64" in said


def test_the_run_folder_is_made_or_refused_by_name(config: Compose, tmp_path: Path) -> None:
    words = (*BARE, "trainer.max_steps=1")
    train(config(*words, run_dir=tmp_path / "new" / "run"))
    assert (tmp_path / "new" / "run" / "config.yaml").is_file()
    (tmp_path / "file").touch()
    with pytest.raises(FlowdiffError, match="can't write to run_dir=.*file/run: Not a directory"):
        train(config(*words, run_dir=tmp_path / "file" / "run"))


def test_points_are_not_augmented(config: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    small = [*BARE, "dataset=toy", "dataset.num_train=256", "dataset.num_test=64", "augment=affine"]
    train(config(*small, "trainer.max_steps=1", "trainer.limit_val_batches=1"))  # as if an experiment had chosen it
    assert "augmentation needs images: training with augment=none" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="augment=affine: needs images: choose augment=none"):
        train(config(*small), ["augment=affine"])


def test_the_default_takes_points_and_a_joined_embedding(config: Compose, tmp_path: Path) -> None:
    few = (*BARE, "trainer.max_steps=1", "trainer.limit_val_batches=1", "flow.n_flows=2")
    points = ("dataset=toy", "dataset.num_train=256", "dataset.num_test=64")
    train(config(*few, *points, tiny=False, run_dir=tmp_path / "points"))
    joined = config(*few, "conditioning=concat", tiny=False, run_dir=tmp_path / "joined")
    train(joined)
    model, _ = checkpoint.load(tmp_path / "joined" / "checkpoints" / "last.ckpt")
    assert isinstance(model, ScoreFlow) and isinstance(model.base, Normal)
    with pytest.raises(ConfigError, match=r"^base=mixture: conditioning=concat needs base=normal$"):
        train(joined, ["base=mixture", "conditioning=concat"])


def test_augmentation_is_learned_and_not_needed_without_training(config: Compose, tmp_path: Path) -> None:
    train(config(*BARE, "augment=affine", "trainer.max_steps=3", "trainer.limit_val_batches=1"))
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    content = checkpoint.read(path)
    assert (content["current_model_state"]["augmentation.told.weight"] != 0).any()
    assert checkpoint.load(path)[1].step == 3
