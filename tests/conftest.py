"""What the tests share: small configurations composed from conf/, and runs of the real command lines."""

import gc
import os
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch  # noqa: F401  whose log keeps the stderr of its import: not that of a test, which is closed
import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

from flowdiff.denoisers import compiled
from tests.helpers import forked, once  # noqa: F401
from tests.helpers.command_lines import TINY, Compose, environment
from tests.helpers.configs import composed

torch.set_num_threads(1)
os.environ.setdefault("FLOWDIFF_CACHE", tempfile.mkdtemp(prefix="flowdiff-cache-"))  # the user's own stays as it is


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts a command is slow; what is fast comes first, then what has to stay on one worker."""
    for item in items:
        if "command" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")

    def order(item: pytest.Item) -> tuple[bool, bool]:
        slow = item.get_closest_marker("slow") is not None
        return slow, slow and item.get_closest_marker("xdist_group") is None

    items.sort(key=order)


def pytest_collection_finish() -> None:
    """What has been imported stays: the collector, which each command calls at its end, need not look at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def same_numbers(request: pytest.FixtureRequest) -> None:
    """A test draws the same random numbers alone and among others, and not those that a seed of 0 gives a metric."""
    torch.manual_seed(zlib.crc32(request.node.name.encode()))


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.fx.GraphModule]]:
    """The graphs that torch.compile captures; they run as they are."""
    found: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        found.append(graph)
        return graph.forward

    monkeypatch.setattr(compiled, "BACKEND", backend)
    yield found
    torch.compiler.reset()


@pytest.fixture
def config(tmp_path: Path) -> Compose:
    """`config("flow=linear", tiny=False, run_dir=…)`: the composed default configuration with these words."""

    def tried(*words: str, tiny: bool = True, run_dir: Path = tmp_path / "run") -> DictConfig:
        return composed("config", f"run_dir={run_dir}", *(TINY if tiny else ()), *words)

    return tried


@pytest.fixture
def command(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`command("train", "flow.n_flows=2", cwd=…)`: `python -m flowdiff.train …` in a process of its own."""

    def run(module: str, *words: str, cwd: Path = tmp_path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        said = tmp_path_factory.mktemp("said")
        return forked.run(f"flowdiff.{module}", words, cwd, environment(), (said / "out", said / "err"), timeout)

    return run
