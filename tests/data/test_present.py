"""Tests that need MNIST are left out on a machine without it, but never in CI without a word."""

import os
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("FLOWDIFF_DATA", "data"))


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_ci_has_the_data(name: str) -> None:
    folder = ROOT / name / "raw"
    if os.environ.get("CI") != "true":
        pytest.skip("not in CI: tests of data that are not here are left out")
    assert folder.is_dir(), f"{folder} is missing: set FLOWDIFF_DATA to the folder that holds {name}/raw"
