"""k-diffusion's `sampling` module, without the rest of its package.

`k_diffusion/__init__` imports CLIP, which wants `pkg_resources`, gone from setuptools. `sampling`
itself needs none of that: it is imported under a package that is only a path.
"""

import importlib
import importlib.util
import sys
import types

spec = importlib.util.find_spec("k_diffusion")
assert spec is not None and spec.submodule_search_locations, "k-diffusion is missing: pip install -e .[dev]"
if "k_diffusion" not in sys.modules:
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["k_diffusion"] = package
sampling = importlib.import_module("k_diffusion.sampling")
