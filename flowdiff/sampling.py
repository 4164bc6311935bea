"""Samples from a checkpoint, written as PNG, grid and npz. The command line around it is `flowdiff.sample`.

The model, its sampler and its schedule come from the checkpoint; what the command line gives wins over them.
Neither the training data nor the run's folder is needed, unless a task (`flowdiff.tasks`) wants images.
"""

import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from flowdiff import trusted
from flowdiff.api import Model
from flowdiff.checkpoint import load as load_checkpoint
from flowdiff.data.base import ImageData, loaded
from flowdiff.data.folders import listed
from flowdiff.data.labels import resolve_labels, typed_labels
from flowdiff.data.latents import seen_through
from flowdiff.errors import ConfigError, FlowdiffError
from flowdiff.files import made, write_json, write_whole
from flowdiff.model.construction import SETTINGS, from_config, make
from flowdiff.options import check
from flowdiff.paths import shown
from flowdiff.plots import density_scatter, image_grid, save_png
from flowdiff.requests import SampleRequest, check_levels, check_request, find_target
from flowdiff.samplers.base import Sampler
from flowdiff.samplers.batched import BatchedSampler, seeds_from
from flowdiff.samplers.schedules import Schedule

KEPT = (*SETTINGS, "guidance_scale")


def sample(cfg: DictConfig) -> dict[str, Any]:
    """Draw and write samples.

    Args:
        cfg: as in conf/sample.yaml.

    Returns:
        ``output_dir``, ``grid`` (or ``scatter``) and ``npz`` (paths), and the conditions of the samples; of a task
        also what it has measured.
    """
    check_request(SampleRequest, plain(cfg))
    task = build_task(cfg)
    model, batched = opened(cfg)
    if task is not None:
        return _perform(task, cfg, model, batched)
    images = model.has_images
    n = cfg.num_samples or (16 if images else 2000)
    wanted = "balanced" if cfg.class_label is None else typed_labels(plain(cfg.class_label), model.class_names)
    labels = resolve_labels(wanted, n, model.num_classes, names=model.class_names)
    seeds = seeds_from(cfg.seed, n)
    folder = output_folder(cfg.output_dir)
    x = batched(labels, seeds)
    conditions = _conditions(cfg, model, batched, n)
    written = _write_images(folder, model, x, labels, seeds) if images else {}
    if not images:
        written = _write_points(folder, model, x, labels, seeds, batched)
    write_json(folder / "samples.json", conditions)
    _report(folder, n, "images" if images else "points", labels, conditions, written, batched.statistics)
    return {"output_dir": str(folder), **{k: str(v) for k, v in written.items()}, **conditions}


def build_task(cfg: DictConfig) -> Any:
    """The task of conf/task that the command line names, None for plain sampling.

    Raises:
        ConfigError: it is none, one of its settings is wrong, or ``mask`` is given to a task without one.
    """
    config = plain(cfg.get("task"))
    if cfg.mask is not None and "mask" not in (config or {}):
        raise ConfigError("mask", cfg.mask, "needs task=inpaint")
    return None if config is None else make(config, "task")


def _perform(task: Any, cfg: DictConfig, model: Model, batched: BatchedSampler) -> dict[str, Any]:
    """Do a task, write and print what came of it."""
    from flowdiff.tasks.base import Request

    data = functools.cache(lambda: data_of(model, *given_root(cfg)))
    wanted = typed_labels(plain(cfg.class_label), model.class_names)
    folder = output_folder(cfg.output_dir)
    drawn = task(model, batched, Request(cfg.num_samples, wanted, cfg.seed, data))
    picture = image_grid(model.to_uint8(drawn.picture.nan_to_num()), columns=len(drawn.columns))
    written = _write_images(folder, model, drawn.x, drawn.labels, drawn.seeds, picture, drawn.arrays)
    conditions = _conditions(cfg, model, drawn.batched, len(drawn.x)) | {"task": task.name} | drawn.measured
    write_json(folder / "samples.json", conditions)
    rows = len(drawn.picture) // len(drawn.columns)
    how = "{sampler}, {num_steps} steps, {nfe:g} evaluations each".format(**conditions)
    print(f"{task.name}: {len(drawn.x)} images of {model.data}, {how}")
    print("\n".join(drawn.report))
    print(f"output_dir: {folder}")
    print(f"npz: {written['npz']}")
    print(f"grid: {written['grid']} ({rows} rows; columns: {', '.join(drawn.columns)})")
    return {"output_dir": str(folder), **{k: str(v) for k, v in written.items()}, **conditions}


def build_data(
    config: Mapping[str, Any], data_root: str | None = None, typed: bool = True, own: bool = False
) -> ImageData:
    """The dataset of a checkpoint's configuration, loaded. Nothing is downloaded for it.

    Args:
        config: its ``dataset``.
        data_root: where its files are now; None: where they were in training.
        typed: a user has typed ``data_root``; False: it is the environment's, where downloaded datasets are, and
            others (a folder of one's own images) stay where they were.
        own: the user has trained the checkpoint: the folder that it names is followed.

    Raises:
        ConfigError: it is nobody's word where the data are.
        FlowdiffError: they are not there.
    """
    plain_config = trusted.without_outside("dataset", config)
    root, is_downloaded = config.get("root"), "download" in config
    if root is not None:
        followed = data_root if typed or is_downloaded else None
        if followed is None and own:
            followed = root
        if followed is None and is_downloaded:
            followed = "data"  # as in conf/
        if followed is None:
            allowed = "is only what the checkpoint says, which is not followed: give data_root=FOLDER"
            raise ConfigError("dataset.root", shown(str(root)), allowed)
        plain_config["root"] = followed
    try:
        return loaded(trusted.build("dataset", plain_config, outside=True))
    except FlowdiffError as error:
        said = str(error)
        if not said.startswith("dataset.root="):
            raise
        if typed and data_root is not None:
            raise FlowdiffError(said.removeprefix("dataset.").replace("root=", "data_root=", 1)) from error
        raise FlowdiffError(f"{said}; data_root=FOLDER says where they are now") from error


def given_root(cfg: DictConfig) -> tuple[str | None, bool]:
    """``data_root``, and whether it was typed: unless it is, it is an interpolation of the environment's."""
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


def _conditions(cfg: DictConfig, model: Model, batched: BatchedSampler, n: int) -> dict[str, Any]:
    """How the samples were made; says so if some are not finite."""
    if batched.nonfinite:
        print(f"warning: {batched.nonfinite} of {n} samples are not finite", file=sys.stderr)
    return batched.conditions | {
        "ckpt_path": str(cfg.ckpt_path),
        "weights": model.weights,
        "data": model.data,
        "class_names": model.class_names,
        "seed": int(cfg.seed),
        "n": n,
        "nonfinite": batched.nonfinite,
    }


def opened(cfg: DictConfig) -> tuple[Model, BatchedSampler]:
    """The model that ``ckpt_path``, ``weights`` and ``device`` name, and its sampler as the command line wants it."""
    device = pick_device(cfg.device)
    model = Model(load_checkpoint(cfg.ckpt_path, cfg.weights), cfg.first_stage.path).to(device)
    root, is_typed = given_root(cfg)
    if is_typed and root is not None and model.config["dataset"].get("root") is None:
        raise ConfigError("data_root", root, f"not needed: the data {model.data} are not read from a folder")
    return model, configured_sampler(model, cfg)


def configured_sampler(model: Model, cfg: DictConfig) -> BatchedSampler:
    """The checkpoint's sampler and schedule with the command line's changes.

    ``sampler=heun`` takes the choice in conf/, filled with the checkpoint's num_steps and sigmas where the command
    line is silent; ``+sampler.s_churn=10`` alone changes the checkpoint's own sampler.
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
            trusted.check(group, config[group])
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
    """Where results go: the folder of Hydra's job (``output_dir``; in a sweep a folder in it for each job)."""
    from hydra.core.hydra_config import HydraConfig

    return made(HydraConfig.get().runtime.output_dir if HydraConfig.initialized() else output_dir, "output_dir")


def plain(value: Any) -> Any:
    """Plain Python in place of OmegaConf's containers."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _write_images(
    folder: Path,
    model: Model,
    x: Tensor,
    labels: Tensor | None,
    seeds: Tensor,
    picture: Tensor | None = None,
    arrays: Mapping[str, Tensor] | None = None,
) -> dict[str, Path]:
    """Each image, all in samples.npz with ``arrays`` beside them, and grid.png: ``picture``, or all of them."""
    images = model.to_uint8(x.nan_to_num())
    earlier = len(list(folder.glob("[0-9]*.png")))
    if earlier > len(images):
        print(f"note: {folder} holds {earlier - len(images)} images of an earlier call beside these", file=sys.stderr)
    paths = {"npz": folder / "samples.npz", "grid": folder / "grid.png"}
    _save_npz(paths["npz"], {"images": images.permute(0, 2, 3, 1), **(arrays or {})}, labels, seeds)
    for i, image in enumerate(images):
        save_png(image, folder / f"{i:06d}.png")
    save_png(image_grid(images) if picture is None else picture, paths["grid"])
    return paths


def _write_points(
    folder: Path, model: Model, x: Tensor, labels: Tensor | None, seeds: Tensor, batched: BatchedSampler
) -> dict[str, Path]:
    paths = {"npz": folder / "samples.npz", "scatter": folder / "scatter.png"}
    _save_npz(paths["npz"], {"points": x}, labels, seeds)
    sigma = float(batched.conditions["sigma_min"])
    density = density_of(model, sigma, labels) if model.has_density and model.normalized else None
    title = f"{model.data}: {len(x)} samples, {batched.sampler.name}" + (
        f", over log p at sigma {sigma:g}" if density else ""
    )
    save_png(density_scatter(x, density, title, labels), paths["scatter"])
    return paths


def density_of(model: Model, sigma: float, labels: Tensor | None) -> Callable[[Tensor], Tensor]:
    """x (M, 2) to log p(x; sigma), (M,): of the mixture of the classes in ``labels``, each by its share."""
    device = next(model.parameters()).device

    def log_prob(x: Tensor) -> Tensor:
        x = x.to(device)
        if labels is None:
            return model.log_prob(x, sigma).cpu()
        classes, counts = labels.unique(return_counts=True)
        each = [model.log_prob(x, sigma, int(c)).cpu() for c in classes]
        return (torch.stack(each, 1) + (counts / counts.sum()).log()).logsumexp(1)

    return torch.no_grad()(log_prob)


def _save_npz(path: Path, arrays: Mapping[str, Tensor], labels: Tensor | None, seeds: Tensor) -> None:
    """``labels`` is -1 where there is no class."""
    labels = torch.full_like(seeds, -1) if labels is None else labels
    found = {key: value.cpu().numpy() for key, value in {**arrays, "labels": labels, "seeds": seeds}.items()}
    write_whole(path, lambda file: np.savez_compressed(file, **found))


def _report(
    folder: Path,
    n: int,
    what: str,
    labels: Tensor | None,
    conditions: Mapping[str, Any],
    written: Mapping[str, Path],
    statistics: Mapping[str, Any],
) -> None:
    drawn = [] if labels is None else sorted(set(labels.tolist()))
    names = [name for c, name in enumerate(conditions["class_names"] or ()) if c in drawn and name != str(c)]
    classes = (f"classes {drawn}" if drawn else "no class") + (f" ({listed(names)})" if names else "")
    print(
        f"{n} {what} of {conditions['data']}, {classes}, seeds {conditions['seed']} to {conditions['seed'] + n - 1}: "
        f"{conditions['sampler']}, {conditions['schedule']}, {conditions['num_steps']} steps, "
        f"{conditions['nfe']:g} evaluations each, guidance {conditions['guidance_scale']:g}, "
        f"{conditions['weights']} weights"
    )
    if statistics:
        print(f"{conditions['sampler']}: " + ", ".join(f"{key} {_shown(value)}" for key, value in statistics.items()))
    print(f"output_dir: {folder}")
    for name, path in written.items():
        print(f"{name}: {path}")


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{key}: {each:g}" for key, each in value.items()) + ")"
    return f"{value:g}"
