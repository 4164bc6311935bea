"""flowdiff: diffusion models whose denoiser is a normalizing flow."""

import os
import sys
from os import PathLike
from typing import TYPE_CHECKING

if "resume=last" in sys.argv:  # typed inside a run folder, which may be a stranger's: no module is imported from there
    sys.path[:] = [place for place in sys.path if os.path.abspath(place) != os.getcwd()]


from flowdiff.runs import interrupts
from flowdiff.version import __version__

if TYPE_CHECKING:
    from flowdiff.model.api import Model

__all__ = ["__version__", "load"]

if sys.argv[:1] == ["-m"] and any(word.split(".")[0] == "flowdiff" for word in sys.orig_argv[:8]):
    interrupts.end_quietly()  # python -m flowdiff[.…], whose modules are still to be imported


def load(
    path: "str | PathLike[str]",
    weights: str = "ema",
    device: str = "cpu",
    first_stage: str | None = None,
    config_dir: "str | PathLike[str] | None" = None,
) -> "Model":
    """The model of a checkpoint, or the ready one of a name: `load("digits")`; see `model.api`."""
    from flowdiff.model.api import load as load_model

    return load_model(path, weights, device, first_stage, config_dir)
