"""k-diffusion's own `sampling` module, as PyPI has it, without the rest of its package.

The package needs numpy below 2, CLIP, kornia and wandb; `sampling` needs torch, scipy, tqdm, torchdiffeq, torchsde and
its neighbour `utils`. `make dev` therefore puts k-diffusion into `.venv/references`, without what it asks for and where
neither Python nor pip looks, and here its modules are imported under a package that is only that path: its `__init__`,
which imports all of it, is not run.
"""

import importlib
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from typing import Any


def load_sampling() -> Any:
    """The module.

    Raises:
        ModuleNotFoundError: it is not here.
    """
    places = [str(Path(sys.prefix) / "references"), *sys.path]
    spec = importlib.machinery.PathFinder.find_spec("k_diffusion", places)
    if spec is None:
        raise ModuleNotFoundError("k-diffusion is not here: make dev")
    sys.modules.setdefault("k_diffusion", importlib.util.module_from_spec(spec))
    return importlib.import_module("k_diffusion.sampling")
