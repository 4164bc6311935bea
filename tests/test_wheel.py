"""The wheel: built from what a checkout holds, complete, and at work where there is no checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.metadata import Metadata

import flowdiff
from tests.helpers.command_lines import BARE, ROOT, TINY, run_folders

pytestmark = pytest.mark.slow

#: What a wheel is made of; another file of a checkout is in none.
SOURCES = ("flowdiff", "conf", "pyproject.toml", "setup.py", "README.md", "LICENSE")


def run(*words: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """A command line without this checkout on its path."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FLOWDIFF"))}
    env = clean | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"} | env
    done = subprocess.run([*map(str, words)], cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built in a copy: a build leaves folders beside its sources."""
    place = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        source = ROOT / name
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, place / name, ignore=ignore) if source.is_dir() else shutil.copy(source, place)
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "dist", ".", cwd=place)
    (built,) = (place / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment with the wheel, and by a path with what this environment has."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=False, symlinks=True)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)}))
    pip = (sys.executable, "-m", "pip", "--python", place / "bin" / "python", "install")
    run(*pip, "-q", "--no-deps", "--no-index", "--no-compile", wheel, cwd=place)
    (own / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")  # a line of a path runs no .pth file in it
    return place / "bin"


def test_what_is_in_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        raw = file.read(next(name for name in names if name.endswith(".dist-info/METADATA")))
    metadata = Metadata.from_email(raw, validate=True)
    assert (metadata.name, str(metadata.version)) == ("flowdiff", flowdiff.__version__)
    assert metadata.license_expression == "MIT" and metadata.description_content_type == "text/markdown"
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "flowdiff").rglob("*") if path.is_file()}
    package = {name for name in package if "__pycache__" not in name}
    conf = {f"flowdiff/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert {name for name in names if ".dist-info/" not in name} == package | conf
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_at_work_in_a_foreign_folder(installed: Path, tmp_path: Path) -> None:
    assert run(installed / "flowdiff", "--version", cwd=tmp_path).stdout == f"flowdiff {flowdiff.__version__}\n"
    ask = "import flowdiff; from flowdiff.errors import how_to_install as h; print(flowdiff.__file__, h('emoji'))"
    file, _, command = run(installed / "python", "-c", ask, cwd=tmp_path).stdout.strip().partition(" ")
    assert Path(file).is_relative_to(installed.parent) and command == "pip install 'flowdiff[emoji]'"
    words = [*TINY, *BARE, "trainer.max_steps=2", "trainer.val_check_interval=2"]
    run(installed / "flowdiff", "train", *words, cwd=tmp_path)
    (trained,) = run_folders(tmp_path)
    checkpoint = f"ckpt_path={trained}/checkpoints/last.ckpt"
    run(installed / "flowdiff", "sample", checkpoint, "num_samples=4", "output_dir=drawn", cwd=tmp_path)
    run(installed / "flowdiff", "sample", "ckpt_path=digits", "class_label=3", "output_dir=threes", cwd=tmp_path)
    assert all((tmp_path / folder / "grid.png").is_file() for folder in ("drawn", "threes"))


def test_an_extra_of_what_is_installed_needs_no_index_for_itself(installed: Path, tmp_path: Path) -> None:
    """`pip install 'flowdiff[zuko]'` after a wheel from anywhere: pip stays with the flowdiff that is there."""
    pytest.importorskip("zuko")
    pip = (sys.executable, "-m", "pip", "--python", installed / "python", "install", "--dry-run", "--no-index")
    done = run(*pip, "flowdiff[zuko]", cwd=tmp_path)
    assert "Requirement already satisfied: flowdiff[zuko]" in done.stdout
