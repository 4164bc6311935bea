"""What a checkpoint holds, and how it is read back without running anything that a stranger put into it.

A checkpoint is Lightning's own file (a dict of tensors and plain values) with one more entry, ``"flowdiff"``:

    format       int, see `FORMAT`
    config       the run's resolved configuration, plain dicts, lists, numbers and strings
    source       the same before interpolation, and ``overrides``, the words of the command line
    shape, num_classes, levels, class_names, data     what the model was trained on
    notes        lines on its files: the numbers of the classes, what was left out
    versions, git                                     what it was trained with
    first_stage                                       of a model of latents: the autoencoder's hash, the pixels' levels
    micro_step                                        batches seen so far

``state_dict`` holds the EMA weights, ``current_model_state`` the raw ones. An exported model (`flowdiff.export`) is
that entry as JSON, with ``step`` and ``weights`` (ema or raw), beside the denoiser's tensors as safetensors.

A configuration is code: Hydra calls whatever ``_target_`` names. So `instantiate_safely` builds only classes defined in
this package and a short list from torch, and tensors are read with ``weights_only=True`` or as safetensors.
"""

import importlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from flowdiff.data.base import ImageData
from flowdiff.errors import FlowdiffError
from flowdiff.files import write_atomically

FORMAT = 1
EXPORTED = "model.safetensors"  # in the folder of an exported model; its facts are in the .json of the same name
#: Classes outside this package that a stored configuration may name: they compute and do nothing else.
TORCH_CLASSES = tuple(
    f"torch.nn.{name}" for name in ("Identity", "ReLU", "SiLU", "GELU", "Tanh", "ELU", "LeakyReLU", "Softplus", "Mish")
)
PACKAGES = ("torch", "torchvision", "lightning", "hydra-core", "omegaconf", "numpy", "flowdiff")


@dataclass(frozen=True)
class Stored:
    """What a file holds of a model: the entry ``"flowdiff"``, the tensors of the denoiser, and which they are."""

    entry: dict[str, Any]
    state: dict[str, Tensor]
    step: int
    weights: str


@dataclass
class Checkpoint:
    """A model read back from a file, with all that is known about it."""

    denoiser: nn.Module
    config: dict[str, Any]
    shape: tuple[int, ...]
    num_classes: int
    levels: int | None
    class_names: list[str] | None
    data: str
    step: int
    weights: str
    path: Path
    first_stage: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=dict)
    git: str | None = None


def describe(
    config: dict[str, Any],
    data: ImageData,
    *,
    source: dict[str, Any] | None = None,
    overrides: list[str] | None = None,
) -> dict[str, Any]:
    """The entry ``"flowdiff"`` of a checkpoint: plain values, which ``weights_only=True`` reads."""
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
        "git": git_commit(),
    }


def read(path: str | os.PathLike[str], map_location: Any = "cpu") -> dict[str, Any]:
    """The contents of a checkpoint file. One that is missing, cut off or foreign raises `FlowdiffError`."""
    file = Path(path).expanduser()
    if exported_file(path) is not None:
        raise FlowdiffError(f"ckpt_path={path}: an exported model can't be trained on; that takes the run's .ckpt file")
    if file.is_dir():
        raise FlowdiffError(f"ckpt_path={path}: a folder; give the file in it, as in {file}/checkpoints/last.ckpt")
    if not file.is_file():
        raise FlowdiffError(f"ckpt_path={path}: no such file")
    try:
        content = torch.load(file, map_location=map_location, weights_only=True)
    except PermissionError as error:
        raise FlowdiffError(f"ckpt_path={path}: {error.strerror}") from error
    except Exception as error:
        reason = str(error)
        if "unsupported global" in reason.lower() or "unsupported class" in reason.lower():
            why = "it holds Python objects, which are not run; only tensors and plain values are read"
        else:
            why = f"not a readable checkpoint; is it cut off? ({file.stat().st_size:,} bytes)"
        raise FlowdiffError(f"ckpt_path={path}: {why}") from error
    if not isinstance(content, dict) or not isinstance(content.get("flowdiff"), dict):
        raise FlowdiffError(f"ckpt_path={path}: not a checkpoint of flowdiff (it has no entry 'flowdiff')")
    _check_format(path, content["flowdiff"])
    return content


def _check_format(path: str | os.PathLike[str], entry: Mapping[str, Any]) -> None:
    found = entry.get("format")
    if found != FORMAT:
        raise FlowdiffError(
            f"ckpt_path={path}: its format is {found!r}, this version of flowdiff reads format {FORMAT}"
        )


def exported_file(path: str | os.PathLike[str]) -> Path | None:
    """The safetensors file of an exported model, if ``path`` is one or the folder of one."""
    file = Path(path).expanduser()
    if file.is_dir() and (file / EXPORTED).is_file():
        return file / EXPORTED
    return file if file.suffix == ".safetensors" and file.is_file() else None


def stored(path: str | os.PathLike[str], weights: str = "ema", map_location: Any = "cpu") -> Stored:
    """Read a model's file, a checkpoint or an exported one, without building the denoiser.

    Args:
        path, weights, map_location: as for `load`.
    """
    if weights not in ("ema", "raw"):
        raise FlowdiffError(f"weights={weights}: must be one of ema, raw")
    file = exported_file(path)
    if file is not None:
        return _exported(path, file, weights)
    content = read(path, map_location)
    if content["flowdiff"].get("config", {}).get("autoencoder"):
        raise FlowdiffError(
            f"ckpt_path={path}: holds an autoencoder, not a denoiser; a model of its latents is trained by "
            "first_stage=autoencoder_kl first_stage.path=RUN/autoencoder"
        )
    key = "current_model_state" if weights == "raw" and "current_model_state" in content else "state_dict"
    tensors = content.get(key) or {}
    state = {k.removeprefix("denoiser."): v for k, v in tensors.items() if k.startswith("denoiser.")}
    entry = {k: v for k, v in content["flowdiff"].items() if k != "micro_step"}
    return Stored(entry, state, int(content.get("global_step", 0)), weights)


def _exported(path: str | os.PathLike[str], file: Path, weights: str) -> Stored:
    """An exported model, which holds the weights that it was exported with."""
    facts = file.with_suffix(".json")
    if not facts.is_file():
        raise FlowdiffError(
            f"ckpt_path={path}: no {facts.name} beside {file.name}: not a model of flowdiff, or half of it"
        )
    try:
        entry = json.loads(facts.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise FlowdiffError(f"ckpt_path={path}: {facts.name} can't be read: {error}") from error
    if not isinstance(entry, dict):
        raise FlowdiffError(f"ckpt_path={path}: {facts.name} is not that of a model of flowdiff")
    _check_format(path, entry)
    try:
        state = load_file(file)
    except (SafetensorError, OSError) as error:
        size = file.stat().st_size
        raise FlowdiffError(f"ckpt_path={path}: {file.name} can't be read; is it cut off? ({size:,} bytes)") from error
    held, step = str(entry.pop("weights", "ema")), int(entry.pop("step", 0))
    if weights == "raw" and held != "raw":
        raise FlowdiffError(f"weights=raw: {path} was exported with the {held} weights alone")
    return Stored(entry, state, step, held)


def load(path: str | os.PathLike[str], weights: str = "ema", map_location: Any = "cpu") -> Checkpoint:
    """Rebuild the denoiser from a checkpoint alone.

    Args:
        path: a ``.ckpt`` file, the folder of an exported model, or the ``.safetensors`` file in it.
        weights: ``"ema"`` (the averaged weights) or ``"raw"`` (those of the last optimiser step). An exported model
            has those that it was exported with.
        map_location: where the tensors go, as in `torch.load`.

    Returns:
        The denoiser in eval mode, and the facts stored with it.
    """
    found = stored(path, weights, map_location)
    entry = found.entry
    try:
        config, shape = entry["config"], tuple(int(n) for n in entry["shape"])
        denoiser = build_denoiser(config, shape, int(entry["num_classes"]))
        denoiser.load_state_dict(found.state)
    except FlowdiffError as error:
        raise FlowdiffError(f"ckpt_path={path}: {error}") from error
    except Exception as error:
        reason = " ".join(str(error).split())
        raise FlowdiffError(f"ckpt_path={path}: the model can't be rebuilt from it: {reason[:300]}") from error
    device = map_location if isinstance(map_location, str | torch.device) else "cpu"
    return Checkpoint(
        denoiser=denoiser.to(device).eval().requires_grad_(False),
        config=config,
        shape=shape,
        num_classes=int(entry["num_classes"]),
        levels=entry.get("levels"),
        class_names=entry.get("class_names"),
        data=str(entry.get("data")),
        step=found.step,
        weights=found.weights,
        path=Path(path),
        first_stage=entry.get("first_stage"),
        versions=entry.get("versions") or {},
        git=entry.get("git"),
    )


def build_denoiser(config: Mapping[str, Any], shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The denoiser of a plain resolved configuration, its weights fresh."""
    return instantiate_safely(config["denoiser"], shape=list(shape), num_classes=num_classes)


def instantiate_safely(config: Mapping[str, Any], **kwargs: Any) -> Any:
    """`hydra.utils.instantiate` for a configuration that may come from a stranger.

    Every ``_target_`` must be a class that is defined in ``flowdiff`` or listed in `TORCH_CLASSES`, and no
    string may hold an interpolation. Anything else is a `FlowdiffError`, raised before anything is built.
    """
    for node in walk(config):
        if isinstance(node, str) and "${" in node:
            raise FlowdiffError(f"its configuration holds an interpolation, {node!r}, which is not followed")
        if isinstance(node, Mapping) and "_target_" in node:
            _check_target(node["_target_"])
    return instantiate(dict(config), _convert_="all", **kwargs)


def _check_target(target: Any) -> None:
    """Raise unless ``target`` names an allowed class. Only this package is imported to find out."""
    if isinstance(target, str) and target in TORCH_CLASSES:
        return
    allowed = isinstance(target, str) and target.startswith("flowdiff.") and "__" not in target
    if allowed:
        module, _, name = str(target).rpartition(".")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise FlowdiffError(f"its configuration names {target}, which this version of flowdiff lacks") from error
        allowed = isinstance(found, type) and found.__module__.split(".")[0] == "flowdiff"
    if not allowed:
        raise FlowdiffError(f"its configuration names _target_={target}: only classes of flowdiff are built")
    if getattr(found, "frozen", None):  # it would read whatever path the configuration names
        raise FlowdiffError(found.frozen)


def walk(node: Any) -> Iterator[Any]:
    """Every value inside nested dicts and lists, keys included."""
    yield node
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield key
            yield from walk(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from walk(value)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its final name, flushes it to the disk and then renames it.

    A run that is killed in the middle of a write leaves the previous file whole; a full disk is an `OSError`.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``, all of it or nothing."""
        write_atomically(path, lambda file: torch.save(checkpoint, file))


def package_versions() -> dict[str, str]:
    """The versions that a result depends on."""
    found = {"python": platform.python_version(), "platform": sys.platform}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of the checkout this package is in, with ``+`` for changed files; None outside one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commands = (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"])
        commit, changed = (
            subprocess.run(c, cwd=root, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
            for c in commands
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed else "")
