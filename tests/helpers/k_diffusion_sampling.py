"""k-diffusion's own `sampling` module, as PyPI has it, without the rest of its package.

The package needs numpy below 2, CLIP, kornia and wandb; `sampling` needs torch, scipy, tqdm, torchdiffeq, torchsde and
its neighbour `utils`. `make dev` therefore puts k-diffusion into `.venv/references`, without what it asks for and where
neither Python nor pip looks, and here its modules are imported under a package that is only that path: its `__init__`,
which imports all of it, is not run.
"""

import importlib
import importlib.machinery
import sys
import types
from pathlib import Path

spec = importlib.machinery.PathFinder.find_spec("k_diffusion", [str(Path(sys.prefix) / "references"), *sys.path])
assert spec is not None and spec.submodule_search_locations, "k-diffusion is not here: make dev"
if "k_diffusion" not in sys.modules:
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["k_diffusion"] = package
sampling = importlib.import_module("k_diffusion.sampling")
