"""A stored model as it is asked for: on which device, by which sampler, with which data."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from flowdiff.commands.requests import check_levels, find_target
from flowdiff.data.base import ImageData, loaded
from flowdiff.data.folders import listed
from flowdiff.data.latents import seen_through
from flowdiff.errors import ConfigError, FlowdiffError
from flowdiff.files import make_folder
from flowdiff.model import safe_construction
from flowdiff.model.api import Model
from flowdiff.model.checkpoint import load as load_checkpoint
from flowdiff.model.configuration import check
from flowdiff.model.construction import SETTINGS, from_config, make
from flowdiff.samplers.base import Sampler
from flowdiff.samplers.batched import BatchedSampler
from flowdiff.samplers.schedules import Schedule

KEPT = (*SETTINGS, "guidance_scale")


def build_data(
    config: Mapping[str, Any], data_root: str | None = None, typed: bool = True, own: bool = False
) -> ImageData:
    """The dataset of a checkpoint's configuration, loaded. Nothing is downloaded for it.

    Args:
        config: its `dataset`.
        data_root: where its files are now; None: where they were in training.
        typed: a user has typed `data_root`; False: it is the environment's, where downloaded datasets are, and
            others (a folder of one's own images) stay where they were.
        own: the user has trained the checkpoint: the folder that it names is followed.

    Raises:
        ConfigError: it is nobody's word where the data are.
        FlowdiffError: they are not there.
    """
    plain_config = safe_construction.without_outside("dataset", config)
    root, is_downloaded = config.get("root"), "download" in config
    if root is not None:
        followed = data_root if typed or is_downloaded else None
        if followed is None and own:
            followed = root
        if followed is None and is_downloaded:
            followed = "data"  # as in conf/
        if followed is None:
            allowed = "is only what the checkpoint says, which is not followed: give data_root=FOLDER"
            raise ConfigError("dataset.root", root, allowed)
        plain_config["root"] = followed
    try:
        return loaded(safe_construction.build("dataset", plain_config, outside=True))
    except FlowdiffError as error:
        said = str(error)
        if not said.startswith("dataset.root="):
            raise
        if typed and data_root is not None:
            raise FlowdiffError(said.removeprefix("dataset.").replace("root=", "data_root=", 1)) from error
        raise FlowdiffError(f"{said}; data_root=FOLDER says where they are now") from error


def given_root(cfg: DictConfig) -> tuple[str | None, bool]:
    """`data_root`, and whether it was typed: unless it is, it is an interpolation of the environment's."""
    return cfg.data_root, not OmegaConf.is_interpolation(cfg, "data_root")


def data_of(model: Model, data_root: str | None = None, typed: bool = True) -> ImageData:
    """The data that a model was trained on, as it sees them; arguments as for `build_data`.

    Raises:
        FlowdiffError: they are not there, or have other classes by now.
    """
    data = build_data(model.config["dataset"], data_root, typed, model.own)
    if model.class_names is not None and data.class_names != model.class_names:
        theirs, ours = listed(data.class_names) or "none", listed(model.class_names) or "none"
        raise FlowdiffError(f"dataset={data.name}: its classes are {theirs}, those of the model {ours}")
    return seen_through(model.first_stage, data)


def opened(cfg: DictConfig) -> tuple[Model, BatchedSampler]:
    """The model that `ckpt_path`, `weights` and `device` name, and its sampler as the command line wants it."""
    device = pick_device(cfg.device)
    model = Model(load_checkpoint(cfg.ckpt_path, cfg.weights), cfg.first_stage.path).to(device)
    root, is_typed = given_root(cfg)
    if is_typed and root is not None and model.config["dataset"].get("root") is None:
        raise ConfigError("data_root", root, f"not needed: the data {model.data} are not read from a folder")
    return model, configured_sampler(model, cfg)


def configured_sampler(model: Model, cfg: DictConfig) -> BatchedSampler:
    """The checkpoint's sampler and schedule with the command line's changes.

    `sampler=heun` takes the choice in conf/, filled with the checkpoint's num_steps and sigmas where the command
    line is silent; `+sampler.s_churn=10` alone changes the checkpoint's own sampler.
    """
    filled = DictConfig(OmegaConf.to_container(cfg, resolve=False))
    given = {key: filled.get(key) for key in KEPT}
    for key in KEPT:
        if filled.get(key) is None:
            filled[key] = model.config.get(key)
    check_levels({**{key: filled.get(key) for key in KEPT}, **{k: plain(filled.get(k)) for k in ("sampler", "task")}})
    config = dict(model.config)
    annotation: Any
    for group, annotation in (("sampler", Sampler), ("schedule", Schedule)):
        choice = plain(filled.get(group)) or {}
        if "_target_" in choice:
            check(group, choice, find_target, annotation)
            config[group] = make(choice, group)
        else:
            config[group] = {**config[group], **choice}
            safe_construction.check(group, config[group])
    return from_config(model.denoiser, config, model.levels is not None, cfg.batch_size, cfg.tile, **given)


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


def output_folder(output_dir: str) -> Path:
    """Where results go: the folder of Hydra's job (`output_dir`; in a sweep a folder in it for each job)."""
    from hydra.core.hydra_config import HydraConfig

    return make_folder(HydraConfig.get().runtime.output_dir if HydraConfig.initialized() else output_dir, "output_dir")


def plain(value: Any) -> Any:
    """Plain Python in place of OmegaConf's containers."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


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
