"""What a checkpoint holds, and how it is read back without running anything that a stranger put into it.

A checkpoint is Lightning's own file (a dict of tensors and plain values) with one more entry, `"flowdiff"`:

    format       int, see `model.facts.FORMAT`
    config       the run's resolved configuration, plain dicts, lists, numbers and strings
    source       the same before interpolation, and `overrides`, the words of the command line
    shape, num_classes, levels, class_names, data     what the model was trained on
    notes        lines on its files: the numbers of the classes, what was left out
    versions, git                                     what it was trained with
    first_stage                                       of a model of latents: the autoencoder's hash, the pixels' levels
    micro_step                                        batches seen so far

and beside it `sha256` and `signature`, see `model.seal`. `state_dict` holds the EMA weights,
`current_model_state` the raw ones. An exported model (`flowdiff.export`) is that entry as JSON, with `step` and
`weights` (ema, raw, ema:0.08), `sha256` and `signature`, beside the denoiser's tensors as safetensors.

A file is measured before it is read (`model.reading`), its entries are held to their types (`model.facts`), and
what its configuration names is built by `model.safe_construction`.
"""

import contextlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowdiff import files
from flowdiff.data.base import ImageData
from flowdiff.errors import ConfigError, FlowdiffError, one_line
from flowdiff.model import averages, reading, ready, safe_construction, seal
from flowdiff.model.budget import Budget
from flowdiff.model.facts import FORMAT, Weights, about, check_content, check_entry
from flowdiff.model.format_1 import as_format_2
from flowdiff.options import problem
from flowdiff.version import __version__

EXPORTED = "model.safetensors"  # in the folder of an exported model; its facts are in the .json of the same name

PACKAGES = ("torch", "torchvision", "lightning", "hydra-core", "omegaconf", "numpy")


@dataclass(frozen=True)
class Facts:
    """What is known of a stored model beside its tensors.

    Attributes:
        entry: the file's `"flowdiff"`, of format 2.
        step: of the optimiser.
        weights: ema, raw or ema:LENGTH.
        path: the file, or the folder of an exported model.
        own: this user wrote it (`model.seal`), and what it says of paths is the user's own word.
    """

    entry: dict[str, Any]
    step: int
    weights: str
    path: Path
    own: bool = False

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration of the training."""
        return self.entry["config"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return tuple(self.entry["shape"])

    @property
    def num_classes(self) -> int:
        """Of the data; a model may look at none of them."""
        return self.entry["num_classes"]

    @property
    def levels(self) -> int | None:
        """Integer levels of a pixel; None for points and latents."""
        return self.entry["levels"]

    @property
    def class_names(self) -> list[str] | None:
        """In the order of the classes' numbers."""
        return self.entry.get("class_names")

    @property
    def data(self) -> str:
        """The name of the data."""
        return self.entry["data"]

    @property
    def first_stage(self) -> dict[str, Any] | None:
        """Of a model of latents: sha256 of the autoencoder, levels of its pixels."""
        return self.entry.get("first_stage")


@dataclass(frozen=True)
class Stored:
    """A model as a file holds it: its facts and the tensors of its denoiser."""

    facts: Facts
    state: dict[str, Tensor]


def describe(
    config: dict[str, Any],
    data: ImageData,
    *,
    source: dict[str, Any] | None = None,
    overrides: list[str] | None = None,
) -> dict[str, Any]:
    """The entry `"flowdiff"` of a checkpoint: plain values, which `weights_only=True` reads."""
    goes_on = bool(config.get("ckpt_path"))
    return {
        "format": FORMAT,
        "config": config,
        "source": source or config,
        "overrides": list(overrides or []),
        "shape": list(data.shape),
        "num_classes": int(data.num_classes),
        "levels": None if data.levels is None else int(data.levels),
        "class_names": None if data.class_names is None else [str(name) for name in data.class_names],
        "data": str(data.name),
        "notes": list(data.notes),
        "first_stage": data.first_stage_facts,
        "versions": package_versions(),
        "git": git_commit(ask=not goes_on),
    }


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The contents of a checkpoint file, its tensors on the CPU, held to their types and to the file's digest.

    Raises:
        FlowdiffError: it is missing, cut off, damaged or foreign; nothing in it was run.
    """
    if exported_file(path) is not None:
        raise about(path, FlowdiffError("an exported model can't be trained on; that takes the run's .ckpt file"))
    try:
        file = files.require_file(path)
        content = check_content(reading.read_checkpoint(file), file.stat().st_size)
        if not seal.check(content):
            reading.check_crc(file)
        content["flowdiff"] = as_format_2(content["flowdiff"])
    except FlowdiffError as error:
        raise about(path, error) from error
    return content


def exported_file(path: str | os.PathLike[str]) -> Path | None:
    """The safetensors file of an exported model, if `path` is one, the folder of one or the name of a ready one."""
    file = ready.locate(path)
    if files.is_file(file):
        return file if file.suffix == ".safetensors" else None
    return file / EXPORTED if files.is_file(file / EXPORTED) else None


def read_model(path: str | os.PathLike[str], weights: str = "ema") -> Stored:
    """Read a model's file, a checkpoint or an exported one, without building the denoiser.

    Args:
        path, weights: as for `load`.
    """
    words = problem(weights, Weights)
    if words is not None:
        raise ConfigError("weights", weights, words)
    file = exported_file(path)
    if file is not None:
        try:
            found = _read_exported(file)
        except FlowdiffError as error:
            raise about(path, error) from error
        if weights not in ("ema", found.facts.weights):
            raise FlowdiffError(f"weights={weights}: {path} was exported with the {found.facts.weights} weights alone")
        return found
    try:
        ready.check_name(path)
    except FlowdiffError as error:
        raise about(path, error) from error
    content = read(path)
    if content["flowdiff"]["config"].get("autoencoder"):
        hint = "a model of its latents is trained by first_stage=autoencoder_kl first_stage.path=RUN/autoencoder"
        raise about(path, FlowdiffError(f"holds an autoencoder, not a denoiser; {hint}"))
    key = "current_model_state" if weights == "raw" and "current_model_state" in content else "state_dict"
    tensors = content.get(key) or {}
    if weights.startswith("ema:"):
        try:
            folder = Path(path).parent.parent / averages.FOLDER
            tensors = tensors | averages.average_of(content, folder, float(weights.removeprefix("ema:")))
        except FlowdiffError as error:
            raise about(path, error) from error
    state = {k.removeprefix("denoiser."): v for k, v in tensors.items() if k.startswith("denoiser.")}
    entry = {k: v for k, v in content["flowdiff"].items() if k != "micro_step"}
    facts = Facts(entry, content.get("global_step", 0), weights, Path(path), seal.is_own(content))
    return Stored(facts, state)


def _read_exported(file: Path) -> Stored:
    """An exported model, which holds the weights that it was exported with."""
    facts = file.with_suffix(".json")
    if not files.is_file(facts):
        raise FlowdiffError(f"no {facts.name} beside {file.name}: not a model of flowdiff, or half of it")
    try:
        entry = files.read_json(facts)
    except FlowdiffError as error:
        raise FlowdiffError(f"{facts.name} {error}") from error
    if not isinstance(entry, dict):
        raise FlowdiffError(f"{facts.name} is not that of a model of flowdiff")
    check_entry(entry)
    try:
        state = reading.read_safetensors(file)
    except FlowdiffError as error:
        raise FlowdiffError(f"{file.name} {error}") from error
    for name, tensor in state.items():
        reading.check_tensor(name, tensor)
    seal.check({**entry, "tensors": state})
    own = seal.is_own(entry)  # of a digest that holds
    state = {name: t.float() if t.dtype == torch.float16 else t for name, t in state.items()}  # an export's half=true
    entry = {k: v for k, v in as_format_2(entry).items() if k not in (seal.DIGEST, seal.SIGNATURE)}
    step, weights = entry.pop("step", 0), entry.pop("weights", "ema")
    return Stored(Facts(entry, step, weights, file, own), state)


def load(path: str | os.PathLike[str], weights: str = "ema") -> tuple[nn.Module, Facts]:
    """Rebuild the denoiser from a checkpoint alone.

    Args:
        path: a `.ckpt` file, the folder of an exported model, the `.safetensors` file in it, or the name of a ready
            model (`model.ready`), if nothing else is there.
        weights: `"ema"` (the averaged weights), `"raw"` (those of the last optimiser step) or `"ema:0.08"` (an average
            of that length, of a run that kept some: `model.averages`). An exported model has those that it was exported
            with.

    Returns:
        The denoiser in eval mode on the CPU, and what is known of it.
    """
    found = read_model(path, weights)
    return build_model(found), found.facts


def build_model(stored: Stored) -> nn.Module:
    """The denoiser of a stored model, in eval mode, without gradients by its weights."""
    facts = stored.facts
    try:
        check_all_finite(stored.state)
        with Budget.of(stored.state):
            denoiser = build_denoiser(facts.config, facts.shape, facts.num_classes)
        reading.check_types(stored.state, denoiser.state_dict())
        denoiser.load_state_dict(stored.state)
    except FlowdiffError as error:
        raise about(facts.path, error) from error
    except Exception as error:
        raise about(facts.path, FlowdiffError(f"the model can't be rebuilt from it: {one_line(error, 300)}")) from error
    return denoiser.eval().requires_grad_(False)


def check_all_finite(state: Mapping[str, Tensor]) -> None:
    """Raise if a weight is NaN or infinite; the error names it."""
    for name, tensor in state.items():
        reading.check_finite(name, tensor)


def build_denoiser(config: Mapping[str, Any], shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The denoiser of a plain resolved configuration, its weights fresh."""
    denoiser: nn.Module = safe_construction.build(
        "denoiser", config["denoiser"], shape=list(shape), num_classes=num_classes
    )
    return denoiser


@contextlib.contextmanager
def limit_to_file(path: str | None) -> Iterator[None]:
    """Where a run goes on from a file, a model that is built in it is not larger than what the file holds."""
    if not path:
        yield
        return
    try:
        file = files.require_file(path)
        with Budget(file.stat().st_size, reading.count_records(file)):
            yield
    except FlowdiffError as error:
        raise error if isinstance(error, ConfigError) else about(path, error) from error


def package_versions() -> dict[str, str]:
    """The versions that a result depends on."""
    found = {"python": platform.python_version(), "platform": sys.platform, "flowdiff": __version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_commit(ask: bool = True) -> str | None:
    """The commit of the checkout this package is in; None outside one.

    Args:
        ask: git whether files are changed: `+` behind the commit. False: no process is started, and `?` stands
            there; so it is in a run that goes on from a file that may be a stranger's.
    """
    root = Path(__file__).resolve().parent.parent.parent
    if not (root / ".git").exists():
        return None
    if not ask:
        commit = _head(root / ".git")
        return None if commit is None else f"{commit}?"
    try:
        commands = (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"])
        commit, changed = (
            subprocess.run(c, cwd=root, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
            for c in commands
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed else "")


def _head(folder: Path) -> str | None:
    """The commit that a .git folder's HEAD names, read from its files; None where they say it in another way."""
    try:
        head = (folder / "HEAD").read_text().strip()
        ref = head.removeprefix("ref: ")
        if ref == head:
            return head
        if (folder / ref).is_file():
            return (folder / ref).read_text().strip()
        packed = (folder / "packed-refs").read_text().splitlines()
        return next((line.split()[0] for line in packed if line.endswith(f" {ref}")), None)
    except OSError:
        return None
