"""The models that ship with the package, made anew: trained, exported in half precision, measured, described.

    python -m experiments.ready_models [--models digits,two_moons] [--runs outputs/ready_models]

Each is trained by the real command line, on one thread. What is measured is the file in half precision as it is
shipped: flowdiff/models/NAME.safetensors and NAME.json. The measurements go to results/NAME.json, and the card
flowdiff/models/NAME.md is made of them.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowdiff.errors import ConfigError, FlowdiffError
from flowdiff.files import read_json, write_json, write_text, write_whole
from flowdiff.model import ready

RESULTS = Path(__file__).parent / "results"
SPARE = ("callbacks=minimal", "logger=none", "metrics=[]", "evaluate=null")


@dataclass(frozen=True)
class Recipe:
    """How one of them is made, and what its card says of its data.

    Attributes:
        words: of the training's command line.
        metrics: what is measured, on the test split.
        data: what it is, and its source.
        data_licence: of the data.
        example: a line that draws from it.
    """

    words: tuple[str, ...]
    metrics: str
    data: str
    data_licence: str
    example: str


RECIPES = {
    "digits": Recipe(
        ("flow=coupling", "flow.width=96", "base=normal", "trainer.max_steps=3000", "trainer.val_check_interval=3000"),
        "[bits_per_dim,denoising,fd,recognised]",
        "scikit-learn's 1,797 handwritten digits, 8×8, 17 levels: the test part of Optical Recognition of Handwritten "
        "Digits (E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, 1998). Trained on 1,257 of them.",
        "CC BY 4.0",
        "flowdiff sample ckpt_path=digits class_label=3",
    ),
    "two_moons": Recipe(
        ("experiment=toy", "flow.width=64", "trainer.max_steps=1200", "trainer.val_check_interval=1200"),
        "[toy]",
        "Points of two half circles with noise, drawn from their formula (`data.distributions`); 50,000 of them.",
        "a formula, which has none",
        "flowdiff sample ckpt_path=two_moons",
    ),
}


def call(command: str, *words: str, cwd: Path) -> None:
    """`python -m flowdiff.COMMAND WORDS` on one thread.

    Raises:
        FlowdiffError: it failed, and has said why.
    """
    line = [sys.executable, "-m", f"flowdiff.{command}", *words]
    if subprocess.run(line, cwd=cwd, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode:
        raise FlowdiffError(f"failed: {' '.join(line[1:])}")


def make(name: str, runs: Path) -> None:
    """Train, export, measure and describe one model; all but what ships goes below `runs`.

    Raises:
        FlowdiffError: a command failed.
    """
    recipe, runs = RECIPES[name], runs.resolve()
    runs.mkdir(parents=True, exist_ok=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    call("train", *recipe.words, *SPARE, f"run_dir={name}", cwd=runs)  # relative: the model says where it was trained
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    exported = runs / f"{name}_exported"
    call("export", f"ckpt_path={name}/checkpoints/last.ckpt", "half=true", f"output_dir='{exported}'", cwd=runs)
    ready.FOLDER.mkdir(exist_ok=True)
    tensors, facts = (exported / "model.safetensors").read_bytes(), read_json(exported / "model.json")
    facts.pop("signature", None)  # by the key of whoever made it
    write_whole(ready.FOLDER / f"{name}.safetensors", lambda file: file.write(tensors))
    write_text(ready.FOLDER / f"{name}.json", json.dumps(facts, indent=1) + "\n")
    measured = runs / f"{name}_measured"
    shipped = f"ckpt_path='{ready.FOLDER / name}.safetensors'"
    call("evaluate", shipped, f"metrics={recipe.metrics}", f"output_dir='{measured}'", cwd=runs)
    record = {
        "words": recipe.words,
        "training_cpu_seconds": round(seconds),
        "bytes": len(tensors),
        "step": facts["step"],
        "versions": facts["versions"],
        "metrics": read_json(measured / "metrics.json"),
    }
    write_json(RESULTS / f"{name}.json", record, ensure_ascii=False)
    write_text(ready.FOLDER / f"{name}.md", card(name, record))


def card(name: str, record: dict[str, Any]) -> str:
    """What a user has to know of a model, in Markdown.

    Args:
        name: of the model.
        record: its results/NAME.json.
    """
    recipe, versions = RECIPES[name], record["versions"]
    lines = [
        f"# {name}",
        "",
        f"    {recipe.example}",
        f'    flowdiff.load("{name}")',
        "",
        f"* Data: {recipe.data}",
        f"* Made by `python -m experiments.ready_models --models {name}`, which trains by "
        f"`python -m flowdiff.train {' '.join(record['words'])}`: {record['step']:,} steps, "
        f"{record['training_cpu_seconds']} CPU seconds of one thread; torch {versions['torch']}, seed 0.",
        f"* Weights: the average of the run (ema), in float16 ({record['bytes'] / 1e6:.2f} MB), read back as float32.",
        f"* Licence: the weights MIT, as the package; the data: {recipe.data_licence}.",
        "* An example of what the program does, no model to rely on.",
        "",
        "Measured of this file, on the test split:",
        "",
        "| metric | value | ± s.e. | n | conditions |",
        "|---|---|---|---|---|",
        *(_row(metric, entry) for metric, entry in record["metrics"].items()),
    ]
    return "\n".join(lines) + "\n"


def _row(metric: str, entry: dict[str, Any]) -> str:
    error = entry.get("standard_error")
    known = {key: entry[key] for key in ("sigma", "sampler", "nfe", "extractor", "seed") if key in entry}
    conditions = [f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in known.items()]
    cells = (
        metric,
        f"{entry['value']:.4g} {entry['unit']}".strip(),
        "" if error is None else f"{error:.2g}",
        f"{entry['n']:,}",
        ", ".join(conditions),
    )
    return f"| {' | '.join(cells)} |"


def main(words: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.ready_models", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--models", default=",".join(RECIPES))
    parser.add_argument("--runs", type=Path, default=Path("outputs/ready_models"))
    given = parser.parse_args(words)
    try:
        for name in given.models.split(","):
            if name not in RECIPES:
                raise ConfigError("--models", name, f"must be among {', '.join(RECIPES)}")
            make(name, given.runs)
    except FlowdiffError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
