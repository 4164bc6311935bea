"""Evaluations of small checkpoints."""

import json
from pathlib import Path
from typing import Any

from flowdiff.commands.evaluate import evaluate
from tests.helpers.configs import composed
from tests.helpers.trained import checkpoint


def measured(folder: Path, *words: str, model: str = "digits") -> dict[str, Any]:
    """metrics.json of a call with these words."""
    ckpt = [] if any(w.startswith("ckpt_path=") for w in words) else [f"ckpt_path={checkpoint(model)}"]
    result = evaluate(composed("evaluate", *ckpt, f"output_dir={folder}", "num_steps=2", *words))
    content = json.loads((folder / "metrics.json").read_text())
    assert content == result["metrics"]
    return content
