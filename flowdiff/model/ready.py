"""Models that ship with the package, by their names: `flowdiff.load("digits")`, `ckpt_path=digits`.

flowdiff/models/NAME.safetensors and NAME.json are an exported model, its weights in half precision, and NAME.md is its
card: the data, the command, figures, the licence. `python -m experiments.ready_models` makes them.
"""

import os
from pathlib import Path

from flowdiff.errors import FlowdiffError, suggest
from flowdiff.files import expand_user

FOLDER = Path(__file__).resolve().parent.parent / "models"


def names() -> list[str]:
    """Of the models that there are."""
    return sorted(file.stem for file in FOLDER.glob("*.safetensors"))


def locate(path: str | os.PathLike[str]) -> Path:
    """The path itself if anything is there, else the file of the ready model of this name, else the path."""
    place = expand_user(path)
    return FOLDER / f"{path}.safetensors" if not os.path.lexists(place) and str(path) in names() else place


def check_name(path: str | os.PathLike[str]) -> None:
    """Raise a `FlowdiffError` that lists the ready models if it is a plain word, and neither one nor a path."""
    word = str(path)
    if word.isidentifier() and word not in names() and not os.path.lexists(word):
        raise FlowdiffError(f"no such file; ready models are {', '.join(names())}{suggest(word, names())}")
