"""A user's mistake is one line with the key, the value and what is allowed, and an exit code. No traceback."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.errors import MissingConfigException

from flowdiff.commands import error_messages, train
from flowdiff.commands.configuration import to_plain
from flowdiff.model import checkpoint, vocabulary
from flowdiff.model.vocabulary import config_dir
from flowdiff.training import building
from tests.helpers.command_lines import BARE, TINY
from tests.helpers.configs import choices
from tests.helpers.trained import composed

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The training command in this process: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")

    def command(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", *words])
        with pytest.raises(SystemExit) as left:
            train.main()
        out, err = capfd.readouterr()
        return int(left.value.code or 0), out, err

    return command


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("activation=foo", "activation=foo: must be one of elu, identity, leakyrelu, softplus, spline, swish, tanh"),
        ("activation=sofplus", "did you mean activation=softplus?"),
        ("experiment=mnst", "did you mean experiment=mnist?"),
        ("metrics=[fd,nope]", "metrics=nope: must be one of bits_per_dim, "),
        ("flow.nflows=5", "flow.nflows=5: unknown key; flow has activation, "),
        ("flow.nflows=5", "did you mean flow.n_flows=5?"),
        ("flows.n_flows=5", "flows.n_flows=5: unknown key; did you mean flow.n_flows=5?"),
        ("flowz=5", "flowz=5: unknown key; the configuration has "),
        ("learning_rate=1", "learning_rate=1: unknown key; "),
        ("flow.n_flows=many", "flow.n_flows=many: must be a whole number from 1 to 1000"),
        ("flow.n_flows=1.5", "flow.n_flows=1.5: must be a whole number"),
        ("lr=fast", "lr=fast: must be a number"),
        ("dataset.batch_size=0", "dataset.batch_size=0: must be a whole number from 1 up"),
        ("flow.n_flows=0", "flow.n_flows=0: must be a whole number from 1 to 1000"),
        ("trainer.max_steps=abc", "trainer.max_steps=abc: must be a whole number from 1 up"),
        ("trainer.precision=7", "precision"),
        ("+flow.bogus=1", "flow.bogus=1: unknown key; flow has activation, depth, max_log_scale, n_flows, width"),
        ("lr=[", "lr=[: not understood"),
        ("resume=last", "resume=last: "),
        ("resume=yes", "resume=yes: must be last"),
        ("resume=best", "resume=best: must be last"),
        ("ckpt_path=none.ckpt", "none.ckpt: no such file"),
        ("sigma_min=100", "sigma_min=100"),
        ("first_stage=autoencoder_kl", "first_stage.path=null: must be an autoencoder's folder"),
    ],
)
def test_one_line(word: str, line: str, run: Run) -> None:
    code, _, err = run(*TINY, *BARE, word)
    assert code == 1
    assert err.count("\n") == 1, err
    assert line in err


@pytest.mark.parametrize(
    ("word", "line"),
    [
        *((word, f"{word}: must be one of ")
          for word in ("flow=null", "flow={a:1}", "flow=", "dataset=null", "logger=3", "logger=false", "metrics=null",
                       "conditioning=false", "trainer=null")),
        ("=3", "=3: not understood; write key=value"),
        ("lr", "lr: not understood; write key=value"),
        ("", "'': not understood"),
        ("--lr=3", "--lr=3: no such option; keys are typed without dashes, lr=3"),
        ("--fast", "--fast: no such option"),
        ("ckpt_path=", "ckpt_path='': must be a checkpoint"),
        ("ckpt_path={a:1}", "ckpt_path="),
        ("ckpt_path=/a=b", """ckpt_path=/a=b: not understood; quote the value for Hydra too: 'ckpt_path="/a=b"'"""),
        ("ckpt_path=/a,b", "ckpt_path=/a,b: several values want --multirun; one value with a comma in it is 'ckpt"),
        ("run_dir=afile", "can't write to run_dir=afile: "),
        ("hydra.run.dir=afile", "can't write afile: "),
        ("hydra.run.dir=", "hydra.run.dir='': must be a folder; is a variable of the shell not set?"),
        ("hydra.launcher.nope=1", "hydra.launcher.nope=1: unknown key of Hydra's"),
        ("n_flows=5", "n_flows=5: unknown key; did you mean flow.n_flows=5?"),
        ("batch_size=3", "batch_size=3: unknown key; did you mean dataset.batch_size=3?"),
        ("max_epochs=2", "max_epochs=2: unknown key; did you mean trainer.max_epochs=2?"),
        ("gradient_clip_val=1", "gradient_clip_val=1: unknown key; did you mean trainer.gradient_clip_val=1?"),
        ("p_mean=0", "p_mean=0: unknown key; did you mean noise.p_mean=0?"),
        ("p_std=1", "p_std=1: unknown key; did you mean noise.p_std=1?"),
        ("sigma_embed_dim=8", "sigma_embed_dim=8: unknown key; did you mean conditioning.sigma_embed_dim=8?"),
        ("base_learning_rate=1e-4", "base_learning_rate=1e-4: unknown key; did you mean lr=1e-4?"),
        ("use_conditioning=false", "use_conditioning=false: unknown key; did you mean conditioning=none"),
        ("data_dim=784", "data_dim=784: unknown key; leave it out"),
        ("num_workers=2", "num_workers=2: unknown key; did you mean dataset.num_workers=2?"),
        ("evaluate=worst", "evaluate=worst: must be one of best, last or null"),
        ("sigma_start=500", "sigma_start=500: must be at most sigma_max=80"),
        ("lr=${nope}", "lr=${nope}: Interpolation key 'nope' not found"),
        ("resume_sweep=maybe", "resume_sweep=maybe: must be true or false"),
        ("callbacks.checkpoints.monitor=val/los", "callbacks.checkpoints.monitor=val/los: must be one of val/loss, "),
        ("+callbacks.mine={_target_:os.getcwd}", "callbacks.mine._target_=os.getcwd: must be a Callback"),
        ("trainer.devices=[0,1]", "trainer.devices=[0, 1]: must be a number of processes on the CPU"),
    ],
)  # fmt: skip
def test_words_of_all_kinds(word: str, line: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "afile").touch()
    code, out, err = run(*TINY, *BARE, word)
    assert code == 1
    assert err.startswith(line) and err.count("\n") == 1, err
    assert "Traceback" not in out and not list(tmp_path.rglob("status.json")), "nothing half made"


def test_the_key_is_the_one_that_was_typed(run: Run) -> None:
    bare = (*BARE, "trainer.max_steps=1")
    for words, line in (
        (("flow=stack", "flow.flows.pixels.n_flows=0"), "flow.flows.pixels.n_flows=0: must be a whole number from 1"),
        (("flow=stack", "flow.flows.pixels.factors=[3]"), "flow.flows.pixels.factors=[3]: each must divide"),
        (("activation=swish", "activation.leak=0"), "activation.leak=0: must be larger than 0.09"),
        (("denoiser=unet", "denoiser.width=-1"), "denoiser.width=-1: must be a whole number"),
    ):
        code, _, err = run(*bare, *words)
        assert (code, err.startswith(line), err.count("\n")) == (1, True, 1), err


def test_options_may_stand_between_words(run: Run, tmp_path: Path) -> None:
    code, _, err = run(*TINY, *BARE, "trainer.max_steps=1", "--multirun", "flow.n_flows=1,2")
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
        code, out, err = run(*TINY, *BARE, "dataset.batch_size=1257", *words, f"hydra.run.dir='{folder}'")
        assert code == 0 and said in out, out + err
        assert (folder / "checkpoints" / "best.ckpt").is_file(), "it was validated at its end"
        content = checkpoint.read(folder / "checkpoints" / "last.ckpt")
        assert content["global_step"] == steps == content["flowdiff"]["config"]["decay_steps"]


def test_the_name_and_the_recipe_of_other_data(run: Run, tmp_path: Path) -> None:
    code, out, err = run(
        *TINY, *BARE, "dataset=toy", "dataset.num_train=64", "dataset.num_test=8", "trainer.max_steps=1"
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
    code, out, err = run(*TINY, *BARE, "trainer.max_steps=1", "denoiser=mlp", "flow.n_flows=3")
    assert code == 0, err
    assert "\nflow.n_flows=3: not used, MLPDenoiser has no flow\n" in out


def test_no_gpu(run: Run) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    code, _, err = run("trainer=gpu")
    assert (code, err) == (1, "trainer.accelerator=gpu: no GPU was found here; use trainer=cpu\n")


def test_data_that_are_not_there(run: Run) -> None:
    code, _, err = run("dataset=mnist", "dataset.root=nowhere")
    assert code == 1
    assert err.count("\n") == 1
    assert "nowhere" in err
    assert "dataset.download=true" in err


def test_an_unknown_choice_stops_a_sweep_before_its_first_job(run: Run, tmp_path: Path) -> None:
    code, out, err = run("--multirun", *TINY, *BARE, "activation=elu,foo")
    assert code == 1
    assert err.splitlines()[-1].startswith("activation=foo: must be one of elu, ")
    assert not list(tmp_path.rglob("status.json"))


def test_a_bug_is_called_one_and_keeps_its_traceback(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*args: Any) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("flowdiff.training.run.train", broken)
    code, _, err = run()
    assert code == 1
    assert "Traceback" in err
    assert err.endswith("this is a bug: ZeroDivisionError: division by zero\n")
    (log,) = tmp_path.rglob("train.log")
    assert "Traceback" in log.read_text()


def test_help_configuration_and_completion(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert out.count("python -m flowdiff.train ") >= 6
    assert f"flow: {', '.join(choices('flow'))}\n" in out
    code, out, _ = run("--cfg", "job", "flow=linear")
    assert code == 0
    assert "_target_: flowdiff.flows.LinearFlow" in out
    line = "python -m flowdiff.train activation=s"
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    code, out, _ = run("-sc", "query=bash")
    assert code == 0
    assert set(out.split()) == {"activation=softplus", "activation=spline", "activation=swish"}
    assert not HydraConfig.initialized(), "what runs next in this process would take itself for a job of this command"


def test_tab_completion_in_a_shell(tmp_path: Path) -> None:
    import shutil
    import subprocess

    from tests.helpers.command_lines import environment

    if shutil.which("bash") is None:
        pytest.skip("no bash")
    line = "python -m flowdiff.train flow.n"
    script = f"""
    python() {{ {sys.executable} "$@"; }}
    eval "$(python -m flowdiff.train -sc install=bash)"
    COMP_LINE="{line}" COMP_POINT={len(line)} COMP_CWORD=3
    flowdiff_completion
    echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], env=environment(), cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "flow.n_flows=", done.stderr


def test_help_needs_no_torch(tmp_path: Path) -> None:
    import subprocess

    from tests.helpers.command_lines import environment

    program = "import sys, flowdiff.train, flowdiff.commands.cli; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], env=environment(), cwd=tmp_path)
    assert done.returncode == 0


def test_the_configuration_is_found_by_its_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert (config_dir() / "config.yaml").is_file()
    assert os.path.isabs(config_dir())
    package = tmp_path / "site-packages" / "flowdiff"
    (package / "conf").mkdir(parents=True)
    (package / "conf" / "config.yaml").touch()
    monkeypatch.setattr(vocabulary, "__file__", str(package / "configs.py"))
    assert config_dir() == package / "conf"


def test_memory_and_disk_are_explained(tmp_path: Path) -> None:
    for error, words in (
        (OSError(28, "No space left on device", "/x"), "can't write /x: No space left on device; free some space"),
        (PermissionError(13, "Permission denied", "/x"), "can't write /x: Permission denied"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), "out of memory: lower dataset.batch_size"),
    ):
        line = error_messages.explain(error, [], config_dir(), "config")
        assert line is not None
        assert line.startswith(words)
    assert error_messages.explain(ZeroDivisionError("x"), [], config_dir(), "config") is None


def test_a_plugin_that_is_not_installed_is_named() -> None:
    error = MissingConfigException("", missing_cfg_file="hydra/launcher/joblib", options=["basic"])
    line = error_messages.explain(error, ["hydra/launcher=joblib"], config_dir(), "config")
    assert line == "hydra/launcher=joblib: is not installed; pip install 'flowdiff[sweep]'"
