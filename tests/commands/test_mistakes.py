"""A user's mistake is one line with the key, the value and what is allowed, and an exit code: a table a command.

A table has the words that are typed and the line that is answered, or how it begins; `…` is whatever stands between.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.errors import MissingConfigException

from flowdiff.commands import error_messages
from flowdiff.errors import how_to_install
from flowdiff.training.diffusion import Diffusion
from tests.helpers.command_lines import BARE, TINY, Run
from tests.helpers.configs import choices
from tests.helpers.trained import checkpoint

#: Said before a job begins: there is not even a run folder.
TRAIN_WORDS = {
    **{
        word: f"{word}: must be one of "
        for word in ("flow=null", "flow={a:1}", "flow=", "dataset=null", "logger=3", "logger=false", "metrics=null")
        + ("conditioning=false", "trainer=null")
    },
    "=3": "=3: not understood; write key=value",
    "lr": "lr: not understood; write key=value",
    "": "'': not understood",
    "--lr=3": "--lr=3: no such option; keys are typed without dashes, lr=3",
    "--fast": "--fast: no such option",
    "ckpt_path=": "ckpt_path='': must be a checkpoint",
    "ckpt_path={a:1}": "ckpt_path=",
    "ckpt_path=/a=b": """ckpt_path=/a=b: not understood; quote the value for Hydra too: 'ckpt_path="/a=b"'""",
    "ckpt_path=/a,b": "ckpt_path=/a,b: several values want --multirun; one value with a comma in it is 'ckpt",
    "run_dir=afile": "can't write to run_dir=afile: ",
    "hydra.run.dir=afile": "can't write afile: ",
    "hydra.run.dir=": "hydra.run.dir='': must be a folder; is a variable of the shell not set?",
    "hydra.launcher.nope=1": "hydra.launcher.nope=1: unknown key of Hydra's",
    "n_flows=5": "n_flows=5: unknown key; did you mean flow.n_flows=5?",
    "batch_size=3": "batch_size=3: unknown key; did you mean dataset.batch_size=3?",
    "max_epochs=2": "max_epochs=2: unknown key; did you mean trainer.max_epochs=2?",
    "gradient_clip_val=1": "gradient_clip_val=1: unknown key; did you mean trainer.gradient_clip_val=1?",
    "p_mean=0": "p_mean=0: unknown key; did you mean noise.p_mean=0?",
    "p_std=1": "p_std=1: unknown key; did you mean noise.p_std=1?",
    "sigma_embed_dim=8": "sigma_embed_dim=8: unknown key; did you mean conditioning.sigma_embed_dim=8?",
    "base_learning_rate=1e-4": "base_learning_rate=1e-4: unknown key; did you mean lr=1e-4?",
    "use_conditioning=false": "use_conditioning=false: unknown key; did you mean conditioning=none",
    "data_dim=784": "data_dim=784: unknown key; leave it out",
    "num_workers=2": "num_workers=2: unknown key; did you mean dataset.num_workers=2?",
    "evaluate=worst": "evaluate=worst: must be one of best, last or null",
    "sigma_start=500": "sigma_start=500: must be at most sigma_max=80",
    "lr=${nope}": "lr=${nope}: Interpolation key 'nope' not found",
    "resume_sweep=maybe": "resume_sweep=maybe: must be true or false",
    "callbacks.checkpoints.monitor=val/los": "callbacks.checkpoints.monitor=val/los: must be one of val/loss, ",
    "+callbacks.mine={_target_:os.getcwd}": "callbacks.mine._target_=os.getcwd: must be a Callback",
    "trainer.devices=[0,1]": "trainer.devices=[0, 1]: must be a number of processes on the CPU",
}
TRAIN = {
    "activation=foo": "activation=foo: must be one of elu, identity, leakyrelu, softplus, spline, swish, tanh",
    "activation=sofplus": "activation=sofplus: …did you mean activation=softplus?",
    "experiment=mnst": "experiment=mnst: …did you mean experiment=mnist?",
    "metrics=[fd,nope]": "metrics=nope: must be one of bits_per_dim, ",
    "flow.nflows=5": "flow.nflows=5: unknown key; flow has activation, …did you mean flow.n_flows=5?",
    "flows.n_flows=5": "flows.n_flows=5: unknown key; did you mean flow.n_flows=5?",
    "flowz=5": "flowz=5: unknown key; the configuration has ",
    "learning_rate=1": "learning_rate=1: unknown key; ",
    "flow.n_flows=many": "flow.n_flows=many: must be a whole number from 1 to 1000",
    "flow.n_flows=1.5": "flow.n_flows=1.5: must be a whole number",
    "lr=fast": "lr=fast: must be a number",
    "dataset.batch_size=0": "dataset.batch_size=0: must be a whole number from 1 up",
    "flow.n_flows=0": "flow.n_flows=0: must be a whole number from 1 to 1000",
    "trainer.max_steps=abc": "trainer.max_steps=abc: must be a whole number from 1 up",
    "trainer.precision=7": "trainer.precision=7",
    "+flow.bogus=1": "flow.bogus=1: unknown key; flow has activation, depth, max_log_scale, n_flows, width",
    "lr=[": "lr=[: not understood",
    "resume=last": "resume=last: ",
    "resume=yes": "resume=yes: must be last",
    "resume=best": "resume=best: must be last",
    "ckpt_path=none.ckpt": "…none.ckpt: no such file",
    "sigma_min=100": "sigma_min=100",
    "lr=-1": "lr=-1: must be a number above 0",
    "label_dropout=2": "label_dropout=2: must be a number from 0 to 1",
    "trainer.max_steps=0": "trainer.max_steps=0: must be a whole number",
    "num_steps=0": "num_steps=0",
    "callbacks.ema.decay=1": "callbacks.ema.decay=1",
    "noise.p_std=-1": "noise.p_std=-1",
    "schedule.rho=0": "schedule.rho=0",
    "activation.leak=0 loss=likelihood": "loss=likelihood needs a normalised density",
    "first_stage=autoencoder_kl": "first_stage.path=null: must be an autoencoder's folder",
}
#: With nothing else typed: the key is the one that was typed, at whatever depth.
TRAIN_DEFAULT = {
    "flow=stack flow.flows.pixels.n_flows=0": "flow.flows.pixels.n_flows=0: must be a whole number from 1",
    "flow=stack flow.flows.pixels.factors=[3]": "flow.flows.pixels.factors=[3]: each must divide",
    "activation=swish activation.leak=0": "activation.leak=0: must be larger than 0.09",
    "denoiser=unet denoiser.width=-1": "denoiser.width=-1: must be a whole number",
    "dataset=mnist dataset.root=nowhere": "…nowhere…dataset.download=true",
    "trainer=gpu": "trainer.accelerator=gpu: no GPU was found here; use trainer=cpu\n",
}
SAMPLE = {
    "class_label=12": "class_label=12: must be a class from 0 to 9, a list, balanced (each in turn) or none (no class)",
    "class_label=-1": "class_label=-1: must be a class from 0 to 9",
    "class_label=[1,10]": "class_label=[1, 10]: must be",
    "class_label=three": "class_label=three: must be",
    "class_label=1.5": "class_label=1.5: must be",
    "guidance_scale=-1": "guidance_scale=-1",
    "num_samples=0": "num_samples=0: must be a whole number",
    "num_samples=-3": "num_samples=-3",
    "num_steps=0": "num_steps=0: must be a whole number",
    "num_steps=0 sampler=heun": "num_steps=0: must be a whole number",
    "batch_size=0": "batch_size=0",
    "tile=0": "tile=0",
    "sigma_min=3 sigma_max=1": "sigma_min=3: must be smaller than sigma_max=1",
    "sigma_min=3 sigma_max=1 schedule=linear": "sigma_min=3: must be smaller",
    "sampler=inversion sigma_start=0.001": "sigma_start=0.001: must be at least",
    "+sampler.s_churn=1": "sampler.s_churn=1: unknown key; sampler has eta, num_steps",
    "seed=-1": "seed=-1",
    "device=tpu": "device=tpu: must be one of",
    "device=cuda": "device=cuda: there is no such GPU",
    "weights=best": "weights=best: must be one of ema, raw",
    "sampler=mcmc sampler.start=data": "sampler.start=data: must be one of inverse, noise",
    "sampler=mala sampler.n_corrector=0": "sampler.n_corrector=0: must be a whole number",
    "schedule=adaptive schedule.even=0": "schedule.even=0: must be a number above 0",
    "ckpt_path=null": "ckpt_path=null: must be a checkpoint",
    "ckpt_path=/nowhere/last.ckpt": "…no such file",
    "mask=left": "mask=left: needs task=inpaint",
    "task=inpaint mask=middle": "mask=middle: must be the part to leave out: left, right",
    "task=inpaint task.mask=middle": "task.mask=middle: must be",
    "task=inpaint mask=3": "mask=3: must be",
    "task=inpaint mask=[left,top]": "mask=['left', 'top']: must be",
    "task=inpaint num_samples=0": "num_samples=0",
    "task=inpaint task.completions=0": "task.completions=0: must be a whole number",
    "task=inpaint task.n_corrector=-1": "task.n_corrector=-1: must be a whole number from 0",
    "task=inpaint task.index=360": "task.index=360: the test split has the images 0 to 359",
    "task=inpaint task.index=-1": "task.index=-1",
    "task=inpaint num_samples=361": "task.index=360: the test split has",
    "task=inpaint task.index=[1,2] num_samples=3": "num_samples=3: task.index has 2 images",
    "task=inpaint task.index=[]": "task.index=[]: must hold 1 image",
    "task=inpaint task.split=all": "task.split=all: must be one of train, val, test",
    "task=inpaint class_label=10": "class_label=10: must be a class",
    "task=inpaint +task.bogus=1": "task.bogus=1: unknown key",
    "task=super_resolution task.factor=3": "task.factor=3: must divide … 8 x 8",
    "task=super_resolution task.factor=1": "task.factor=1: must be a whole number from 2",
    "task=interpolate task.steps=1": "task.steps=1: must be a whole number from 2",
    "task=interpolate task.index=[1,2,3]": "task.index=[1, 2, 3]: must hold 2 images",
    "task=interpolate sigma_start=-1": "sigma_start=-1",
    "task=traverse mask=left": "mask=left: needs task=inpaint",
    "task=traverse task.levels=1": "task.levels=1: must be a whole number from 2",
}
SAMPLE_POINTS = {
    "class_label=0": "class_label=0: this model is unconditional",
    "guidance_scale=2": "guidance_scale=2: this model has no classes",
    **{f"task={task}": f"task={task}: needs a model of images" for task in choices("task")},
}
SAMPLE_UNET = {
    "sampler=inversion": "sampler=inversion: needs a flow with an inverse",
    "sampler=mala": "sampler=mala: needs a flow with a density",
    "sampler=mcmc": "sampler=mcmc: needs a flow with an inverse",
    "sampler=mcmc sampler.start=noise": "sampler=mcmc: needs a flow with a density",
    "task=inpaint": "task.n_corrector=4: … density",
    "task=super_resolution": "task.n_corrector=4: … density",
    "task=interpolate": "task=interpolate: needs a flow with an inverse",
    "task=traverse": "task=traverse: needs a flow with an inverse",
}
EVALUATE = {
    "seed=0": "metrics=",  # the checkpoint was trained without metrics, and none are given
    "ckpt_path=null": "ckpt_path=null: must be a checkpoint",
    "metrics=[bits_per_dim] split=all": "split=all: must be one of train, val, test",
    "metrics=[fd] sigma_min=3 sigma_max=1": "sigma_min=3: must be smaller than sigma_max=1",
    "metrics=[fd] metrics.fd.extractor=nothing": "metrics.fd.extractor=nothing",
    "metrics=[fd] batch_size=0": "batch_size=0",
    "metrics=[fd] device=tpu": "device=tpu",
    "metrics=[fd] data_root=/x": "data_root=/x: not needed: the data digits are not read from a folder",
    "metrics=[denoising] against=x.ckpt": "against=x.ckpt: no such file",
    "metrics=[denoising] against=x.ckpt denoiser=sdxl": "against=x.ckpt: is one model, denoiser= another",
    "metrics=[denoising] denoiser=sdxl": "denoiser.path=null: must be the folder",
    "metrics=[denoising] denoiser=unet_diffusers_pretrained": "denoiser.path=null: must be the folder",
    "metrics=[denoising] denoiser=unet_diffusers_pretrained denoiser.path=x": "denoiser.path=x: there is no such",
    "metrics=[denoising] denoiser=sdxl +denoiser.size=3": "denoiser.size=3: unknown key",
    "metrics=[denoising] denoiser=score_flow": "denoiser…: is made by training",
    "metrics=[denoising] denoiser=unet": "denoiser…: is made by training; …against=",
}
EXPORT = {
    "format=onnx": "format=onnx: must be one of safetensors, diffusers",
    "ckpt_path=null": "ckpt_path=null: must be a checkpoint",
    "weights=best": "weights=best: must be one of ema, raw",
}
#: Each table's command, the model that it is given if it is given one, and what is typed before the mistake.
TABLES: dict[str, tuple[dict[str, str], str, str | None, Sequence[str]]] = {
    "train, words": (TRAIN_WORDS, "train", None, (*TINY, *BARE)),
    "train": (TRAIN, "train", None, (*TINY, *BARE)),
    "train, default": (TRAIN_DEFAULT, "train", None, (*BARE, "trainer.max_steps=1")),
    "sample": (SAMPLE, "sample", "digits", ("output_dir=out",)),
    "sample, points": (SAMPLE_POINTS, "sample", "toy", ("output_dir=out",)),
    "sample, unet": (SAMPLE_UNET, "sample", "unet", ("output_dir=out",)),
    "evaluate": (EVALUATE, "evaluate", "digits", ("output_dir=out", "num_steps=2")),
    "export": (EXPORT, "export", "digits", ("output_dir=out",)),
}


@pytest.mark.slow
@pytest.mark.parametrize(("table", "words"), [(name, words) for name, table in TABLES.items() for words in table[0]])
def test_a_mistake_is_one_line(
    table: str, words: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if words in ("trainer=gpu", "device=cuda") and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    (tmp_path / "afile").touch()
    lines, command, model, before = TABLES[table]
    given = [f"ckpt_path={checkpoint(model)}"] if model else []
    monkeypatch.setattr(Diffusion, "training_step", lambda *given: pytest.fail("training began"))
    code, out, err = run(command, *given, *before, *words.split(" "))
    assert code == 1
    assert re.match(".*".join(map(re.escape, lines[words].split("…"))), err) and err.count("\n") == 1, err
    assert "Traceback" not in out
    if table == "train, words":
        assert not list(tmp_path.rglob("status.json")), "nothing half made"
    assert not [file for file in tmp_path.rglob("*") if file.suffix in (".png", ".npz", ".ckpt", ".safetensors")]
    assert not list(tmp_path.rglob("metrics.json"))


def test_an_unknown_choice_stops_a_sweep_before_its_first_job(run: Run, tmp_path: Path) -> None:
    code, _, err = run("train", "--multirun", *TINY, *BARE, "activation=elu,foo")
    assert code == 1
    assert err.splitlines()[-1].startswith("activation=foo: must be one of elu, ")
    assert not list(tmp_path.rglob("status.json"))


def test_a_bug_is_called_one_and_keeps_its_traceback(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*args: Any) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("flowdiff.training.run.train", broken)
    code, _, err = run("train")
    assert code == 1
    assert "Traceback" in err
    assert err.endswith("this is a bug: ZeroDivisionError: division by zero\n")
    (log,) = tmp_path.rglob("train.log")
    assert "Traceback" in log.read_text()


def test_memory_and_disk_are_explained() -> None:
    for error, words in (
        (OSError(28, "No space left on device", "/x"), "can't write /x: No space left on device; free some space"),
        (PermissionError(13, "Permission denied", "/x"), "can't write /x: Permission denied"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), "out of memory: lower dataset.batch_size"),
    ):
        line = error_messages.explain(error, [], "config")
        assert line is not None
        assert line.startswith(words)
    assert error_messages.explain(ZeroDivisionError("x"), [], "config") is None


def test_a_plugin_that_is_not_installed_is_named() -> None:
    error = MissingConfigException("", missing_cfg_file="hydra/launcher/joblib", options=["basic"])
    line = error_messages.explain(error, ["hydra/launcher=joblib"], "config")
    assert line == f"hydra/launcher=joblib: is not installed; {how_to_install('sweep')}"
