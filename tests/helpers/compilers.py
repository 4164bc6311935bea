"""What tests of torch.compile's own backend need."""

import shutil

import pytest

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="there is no C++ compiler: torch.compile needs one"
)
