"""A trained model without its training: safetensors and JSON, or a folder of diffusers. See `flowdiff.export`.

    safetensors   FOLDER/model.safetensors   the denoiser's tensors
                  FOLDER/model.json          the entry "flowdiff" of the checkpoint, step and weights
    diffusers     FOLDER/model_index.json, pipeline.py, denoiser/, scheduler/, vae/: what `model.pipeline` saves

`flowdiff.load`, `flowdiff.sample` and `flowdiff.evaluate` read the first as they read a checkpoint.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from flowdiff.errors import ConfigError, FlowdiffError, how_to_install
from flowdiff.files import make_folder, write_json, write_whole
from flowdiff.model import checkpoint, seal
from flowdiff.model.api import Model
from flowdiff.model.checkpoint import EXPORTED, Stored, build_model, read_model
from flowdiff.model.requests import ExportRequest


def export(request: ExportRequest) -> dict[str, Any]:
    """Write a checkpoint's model in another format.

    Returns:
        `output_dir`, and `files` (paths below it).

    Raises:
        FlowdiffError: no such checkpoint or format, a model that the format can't hold, diffusers not installed.
    """
    if request.half and request.format != "safetensors":
        raise ConfigError("half", True, f"is for format=safetensors, not {request.format}")
    stored = read_model(request.ckpt_path, request.weights)
    built = Model(build_model(stored), stored.facts, request.first_stage.path)  # what can't be built is not handed on
    folder = make_folder(request.output_dir, "output_dir")
    if request.half:
        stored = replace(stored, state=halve(stored.state, dict(built.denoiser.named_parameters())))
    hint = FORMATS[request.format](stored, built, folder)
    print(f"{request.format}: {built.data}, step {stored.facts.step}, {stored.facts.weights} weights")
    print(f"output_dir: {folder}\n{hint}")
    return {"output_dir": str(folder), "files": sorted(str(f) for f in folder.rglob("*") if f.is_file())}


def halve(state: Mapping[str, Tensor], weights: Iterable[str]) -> dict[str, Tensor]:
    """The state with its weights in float16; what else is in it (means, tables, scales of the data) stays as it is.

    Raises:
        FlowdiffError: a weight is beyond what float16 holds.
    """
    found = {name: state[name].half() for name in weights if name in state and state[name].dtype == torch.float32}
    checkpoint.check_all_finite(found)
    return {**state, **found}


def write_safetensors(model: Stored, built: Model, folder: Path) -> str:
    """The model as `model.safetensors` and `model.json`; how it is read, in words."""
    file = folder / EXPORTED
    tensors = {name: tensor.contiguous().clone() for name, tensor in model.state.items()}  # none may share memory
    write_whole(file, lambda out: out.write(save(tensors)))
    entry = {**model.facts.entry, "step": model.facts.step, "weights": model.facts.weights}
    content = seal.add_seal({**entry, "tensors": tensors}, seal.own_key(make=False) if model.facts.own else None)
    write_json(file.with_suffix(".json"), {key: value for key, value in content.items() if key != "tensors"})
    return f'read by: flowdiff.load("{folder}")'


def write_diffusers(model: Stored, built: Model, folder: Path) -> str:
    """The model as a pipeline of diffusers, with its autoencoder if it is one of latents; how it is read, in words."""
    try:
        from flowdiff.model.pipeline import pipeline_of
    except ImportError as error:
        raise FlowdiffError(f"format=diffusers: {how_to_install('latent')} ({error})") from error
    try:
        pipeline_of(model, getattr(built.first_stage, "network", None)).save_pretrained(folder)
    except OSError as error:
        raise FlowdiffError(f"can't write {folder}: {error.strerror or error}") from error
    return f'read by: diffusers.DiffusionPipeline.from_pretrained("{folder}", trust_remote_code=True)'


FORMATS: dict[str, Callable[[Stored, Model, Path], str]] = {
    "safetensors": write_safetensors,
    "diffusers": write_diffusers,
}
