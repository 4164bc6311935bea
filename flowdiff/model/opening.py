"""A stored model as it is asked for: on which device, by which sampler, with which data."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from flowdiff.data.base import ImageData, read_data
from flowdiff.data.folders import list_names
from flowdiff.data.latents import apply_first_stage
from flowdiff.denoisers.compiled import check_compiler
from flowdiff.errors import ConfigError, FlowdiffError
from flowdiff.model import checkpoint, safe_construction
from flowdiff.model.api import Model
from flowdiff.model.configuration import check
from flowdiff.model.construction import SETTINGS, build, find_target, from_config
from flowdiff.model.requests import DrawRequest, check_levels, spell_out
from flowdiff.options import Recipe
from flowdiff.samplers.base import Sampler
from flowdiff.samplers.batched import BatchedSampler
from flowdiff.samplers.schedules import Schedule

KEPT = (*SETTINGS, "guidance_scale")


def open_model(request: DrawRequest) -> tuple[Model, BatchedSampler]:
    """The model that `ckpt_path`, `weights` and `device` name, and its sampler as it is wanted."""
    device = pick_device(request.device)
    if request.compile:
        check_compiler(device.type)
    denoiser, facts = checkpoint.load(request.ckpt_path, request.weights)
    model, root = Model(denoiser, facts, request.first_stage.path).to(device), request.data_root
    if root is not None and model.config["dataset"].get("root") is None:
        raise ConfigError("data_root", root, f"not needed: the data {model.data} are not read from a folder")
    return model, configure_sampler(model, request)


def configure_sampler(model: Model, request: DrawRequest) -> BatchedSampler:
    """The checkpoint's sampler and schedule with the request's changes.

    `sampler=heun` takes the choice in conf/, filled with the checkpoint's num_steps and sigmas where the request is
    silent; `+sampler.s_churn=10` alone changes the checkpoint's own sampler.
    """
    given = {key: getattr(request, key) for key in KEPT}
    known = {key: model.config.get(key) if value is None else value for key, value in given.items()}
    check_levels(known | {name: spell_out(getattr(request, name, None)) for name in ("sampler", "task")})
    config = dict(model.config)
    for group, kind in (("sampler", Sampler), ("schedule", Schedule)):
        chosen: Any = getattr(request, group)
        if chosen is None:
            safe_construction.check(group, config[group])
        elif not isinstance(chosen, Mapping):  # an object
            config[group] = build(Recipe[Any](group, chosen), kind)
        elif "_target_" in chosen:
            node = {key: known.get(key) if value is None else value for key, value in chosen.items()}
            check(group, node, find_target, kind)
            config[group] = build(Recipe[Any](group, node), kind)
        else:
            config[group] = {**config[group], **chosen}
            safe_construction.check(group, config[group])
    size = (request.batch_size, request.tile, request.compile)
    return from_config(model.denoiser, config, model.levels is not None, *size, **given)


def load_data(model: Model, data_root: str | None = None) -> ImageData:
    """The data that a model was trained on, as it sees them. Nothing is downloaded for it.

    Args:
        model: from a checkpoint.
        data_root: where the files are now; None: downloaded data sets are in FLOWDIFF_DATA, and what this user has
            trained on is where it was in training.

    Raises:
        ConfigError: it is nobody's word where the data are.
        FlowdiffError: they are not there, or have other classes by now.
    """
    data = build_data(model.config["dataset"], data_root, model.facts.own)
    if model.class_names is not None and data.class_names != model.class_names:
        theirs, ours = list_names(data.class_names) or "none", list_names(model.class_names) or "none"
        raise FlowdiffError(f"dataset={data.name}: its classes are {theirs}, those of the model {ours}")
    return apply_first_stage(model.first_stage, data)


def build_data(config: Mapping[str, Any], data_root: str | None = None, own: bool = False) -> ImageData:
    """The dataset of a checkpoint's configuration, loaded; arguments as for `load_data`.

    Args:
        config: its `dataset`.
        data_root: where the files are now.
        own: the user has trained the checkpoint: the folder that it names is followed.
    """
    plain_config = safe_construction.drop_outside("dataset", config)
    root, is_downloaded = config.get("root"), "download" in config
    if root is not None:
        places = [data_root, os.environ.get("FLOWDIFF_DATA") if is_downloaded else None, root if own else None]
        followed = next((place for place in places if place), "data" if is_downloaded else None)  # as in conf/
        if followed is None:
            allowed = "is only what the checkpoint says, which is not followed: give data_root=FOLDER"
            raise ConfigError("dataset.root", root, allowed)
        plain_config["root"] = followed
    try:
        return read_data(safe_construction.build("dataset", plain_config, outside=True))
    except FlowdiffError as error:
        said = str(error)
        if not said.startswith("dataset.root="):
            raise
        if data_root is not None:
            raise FlowdiffError(said.removeprefix("dataset.").replace("root=", "data_root=", 1)) from error
        raise FlowdiffError(f"{said}; data_root=FOLDER says where they are now") from error


def pick_device(device: str) -> torch.device:
    """The device of a name: auto, cpu, cuda, cuda:1, mps.

    Raises:
        ConfigError: there is none of that name here.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    name = ("cuda" if cuda else "cpu") if device == "auto" else str(device)
    kind, _, index = name.partition(":")
    count = {"cpu": 1, "cuda": torch.cuda.device_count() if cuda else 0, "mps": int(mps)}.get(kind)
    if count is None or (index and not index.isdigit()):
        raise ConfigError("device", device, "must be one of auto, cpu, cuda, cuda:<number>, mps")
    if int(index or 0) >= count:
        raise ConfigError("device", device, "there is no such GPU here; device=cpu works")
    return torch.device(name)


def density_of(model: Model, sigma: float, labels: Tensor | None) -> Callable[[Tensor], Tensor]:
    """x (M, 2) to log p(x; sigma), (M,): of the mixture of the classes in `labels`, each by its share."""
    device = next(model.parameters()).device

    def log_prob(x: Tensor) -> Tensor:
        x = x.to(device)
        if labels is None:
            return model.log_prob(x, sigma).cpu()
        classes, counts = labels.unique(return_counts=True)
        each = [model.log_prob(x, sigma, int(c)).cpu() for c in classes]
        return (torch.stack(each, 1) + (counts / counts.sum()).log()).logsumexp(1)

    return torch.no_grad()(log_prob)
