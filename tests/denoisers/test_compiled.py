"""Denoisers by torch.compile: the samples of eager mode, one graph for all noise levels, and what stays on disk.

What a second start finds there is counted, not timed.
"""

import _ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
import torch

from flowdiff.denoisers import compiled
from flowdiff.denoisers.compiled import Compiled
from flowdiff.denoisers.compiler_cache import is_cut_short, remove_broken
from flowdiff.errors import ConfigError
from flowdiff.model.api import load
from tests.helpers.command_lines import ROOT, Command, environment
from tests.helpers.compilers import needs_compiler
from tests.helpers.models import make, points, random_flow
from tests.helpers.trained import checkpoint

LIBRARY = Path(_ctypes.__file__)
needs_elf = pytest.mark.skipif(LIBRARY.read_bytes()[:4] != b"\x7fELF", reason="libraries have another format here")
Graphs = list[torch.fx.GraphModule]


def test_all_steps_are_one_graph_with_the_samples_of_eager_mode(graphs: Graphs) -> None:
    model = load(checkpoint("digits"))
    how: dict[str, Any] = {"sampler": "ancestral", "num_steps": 3, "batch_size": 64, "quiet": True}
    expected = model.sample(100, **how)
    assert not graphs
    torch.testing.assert_close(model.sample(100, compile=True, **how), expected, rtol=0, atol=1e-4)
    model.sample(3, compile=True, **how)
    assert len(graphs) == 1
    guided = model.sample(3, compile=True, guidance_scale=2.0, **how)
    torch.testing.assert_close(guided, model.sample(3, guidance_scale=2.0, **how), rtol=0, atol=1e-4)
    assert len(graphs) == 2, "that of the null class too"


def test_density_and_inverse(graphs: Graphs) -> None:
    """Score and log-density are compiled; the inverse, a search, is not."""
    model = random_flow("coupling")
    found = Compiled(model)
    x, sigma, labels = points()
    with torch.no_grad():
        for actual, expected in zip(
            found.score_and_log_prob(x, sigma, labels), model.score_and_log_prob(x, sigma, labels), strict=True
        ):
            torch.testing.assert_close(actual, expected)
        assert len(graphs) == 1
        torch.testing.assert_close(found.inverse(x, sigma, labels), model.inverse(x, sigma, labels), rtol=0, atol=0)
    assert len(graphs) == 1


def test_what_is_no_graph_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"compile=true: this flow estimates .*: use compile=false"):
        Compiled(make(flow="residual", overrides={"flow.exact_dim": 0}))


@needs_elf
def test_a_library_that_ends_too_soon_is_seen(tmp_path: Path) -> None:
    whole, found = LIBRARY.read_bytes(), tmp_path / "found.so"
    for size in (0, 3, 40, 64, 1000, len(whole) // 2, len(whole) - 1):
        found.write_bytes(whole[:size])
        assert is_cut_short(found), size
    found.write_bytes(whole)
    assert not is_cut_short(found)
    found.write_bytes(b"\xcf\xfa\xed\xfe of another system")
    assert not is_cut_short(found)
    assert not is_cut_short(tmp_path / "gone.so")


@needs_elf
def test_broken_libraries_are_removed_but_not_those_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    locks = tmp_path / "locks"
    locks.mkdir()
    whole = LIBRARY.read_bytes()
    files = {name: tmp_path / "ab" / name for name in ("good.main.so", "half.main.so", "part.main.o", "busy.main.so")}
    (tmp_path / "ab").mkdir()
    for name, path in files.items():
        path.write_bytes(whole if name.startswith("good") else whole[: len(whole) // 2])
    with filelock.FileLock(locks / "busy.lock"):
        compiled.mend_cache()
    assert [name for name, path in files.items() if path.exists()] == ["good.main.so", "busy.main.so"]
    assert capsys.readouterr().out == f"compile: 2 files in {tmp_path} were cut short, and are made anew\n"
    assert remove_broken() == [files["busy.main.so"]]
    compiled.mend_cache()
    assert not capsys.readouterr().out


STEP = """
import json, torch
from torch._dynamo.utils import counters
from flowdiff.denoisers.base import Perturbation
from flowdiff.training.compilation import compile_loss
from tests.helpers.configs import build
from tests.helpers.models import make, points, randomise, statistics

model = make(flow="linear", overrides={"flow.n_flows": 1})
model.fit(statistics())
randomise(model)
x0, sigma, labels = (given.float() if given.is_floating_point() else given for given in points())
terms = compile_loss(build("loss", "mixture"), model)
eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
terms(model, x0, labels, sigma, eps, Perturbation(), torch.tensor(0.5))["loss"].mean().backward()
gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
print(json.dumps({**counters["aot_autograd"], **counters["inductor"], "gradient": gradient.tolist()}))
"""


def step(cache: Path) -> tuple[dict[str, Any], str]:
    """What a process of its own counts in one compiled step, and what else it says."""
    given = environment() | {"TORCHINDUCTOR_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", STEP], cwd=ROOT, env=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    *said, found = done.stdout.splitlines()
    return json.loads(found), "\n".join(said)


@pytest.mark.slow
@needs_compiler
def test_a_second_start_compiles_nothing_and_what_was_cut_short_anew(tmp_path: Path) -> None:
    first, _ = step(tmp_path)
    assert first["autograd_cache_miss"] == 1 and first["fxgraph_cache_miss"] == 2  # the backward pass is one too
    libraries = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.so")}
    assert libraries

    second, said = step(tmp_path)
    assert second["autograd_cache_hit"] == 1 and not said
    assert not second.keys() & {"autograd_cache_miss", "autograd_cache_bypass", "fxgraph_cache_miss"}
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.so")} == libraries
    assert second["gradient"] == first["gradient"]

    for path in libraries:
        os.truncate(path, path.stat().st_size // 2)
    third, said = step(tmp_path)
    assert said == f"compile: {len(libraries)} files in {tmp_path} were cut short, and are made anew"
    assert third["gradient"] == first["gradient"]
    assert not [path for path in libraries if path.exists() and is_cut_short(path)]


@pytest.mark.slow
@needs_compiler
@pytest.mark.skipif(not os.environ.get("FLOWDIFF_INDUCTOR"), reason="a minute: FLOWDIFF_INDUCTOR=1")
def test_the_command_draws_the_samples_of_eager_mode(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    found = []
    for name, more in (("eager", []), ("compiled", ["compile=true"])):
        words = [f"ckpt_path={checkpoint('toy')}", "sampler=ancestral", "num_steps=3", "num_samples=20"]
        done = command("sample", *words, *more, f"output_dir={name}")
        assert done.returncode == 0, done.stderr
        assert bool(list(tmp_path.rglob("*.so"))) == bool(more)
        found.append(np.load(tmp_path / name / "samples.npz")["points"])
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-4)
