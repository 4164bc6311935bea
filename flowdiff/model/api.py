"""A trained model in a notebook.

denoiser = flowdiff.load("outputs/…/checkpoints/last.ckpt")
denoiser.log_prob(x, sigma, labels)      exact log-density, in nats
denoiser.score(x, sigma, labels)         its gradient by x
denoiser(x, sigma, labels)               D, the way k-diffusion's and EDM's samplers call it
denoiser.sample(16, 3, sampler="heun")   images in [-1, 1]; denoiser.to_uint8 makes bytes of them
denoiser.inpaint(x, "left", labels)      other left halves for the images x; super_resolution(x) makes them larger
denoiser.decode(z)                       images of a model of latents (first_stage=autoencoder_kl)
denoiser.latent(x, sigma, labels)        z of the flow; denoiser.inverse(z, sigma, labels) is x again
"""

import functools
import os
from collections.abc import Iterable
from typing import Any, TypedDict, Unpack, cast

import torch
from torch import Tensor, nn

from flowdiff import samplers
from flowdiff.data.first_stage import FirstStage, posterior_sample
from flowdiff.data.labels import Labels, resolve_labels
from flowdiff.data.quantise import centres, from_uint8, to_levels, to_uint8
from flowdiff.errors import ConfigError, FlowdiffError, at_least
from flowdiff.model import checkpoint, inputs
from flowdiff.model.checkpoint import Facts
from flowdiff.model.construction import find_choice, from_config
from flowdiff.model.first_stage import open_first_stage
from flowdiff.model.inputs import Array, Classes, Numbers
from flowdiff.model.vocabulary import add_folder
from flowdiff.samplers import schedules
from flowdiff.samplers.batched import BatchedSampler, seeds_from
from flowdiff.samplers.completion import complete, first_seeds
from flowdiff.samplers.conditional import BlockMean, Known, Mask
from flowdiff.samplers.masks import missing_pixels

SHOWN = ("config", "shape", "levels", "class_names", "data", "weights", "own")  # of the facts, on the model itself


class Sampling(TypedDict, total=False):
    """How samples are drawn; what is left out or None is the training configuration's.

    Attributes:
        schedule: a name (see conf/schedule) or a `Schedule`.
        num_steps, sigma_min, sigma_max, sigma_start, guidance_scale: numbers in place of the configuration's.
        batch_size, tile, compile: see `samplers.batched.BatchedSampler`.
    """

    schedule: str | schedules.Schedule | None
    num_steps: int | None
    sigma_min: float | None
    sigma_max: float | None
    sigma_start: float | None
    guidance_scale: float | None
    batch_size: int
    tile: int | None
    compile: bool


class Model(nn.Module):
    """A denoiser from a checkpoint, with what is known about its data.

    Attributes:
        denoiser: the network, in eval mode and without gradients by its weights.
        facts: what is known of it: config, shape, levels, data, class_names, weights, …
        num_classes: K; 0 for an unconditional model.
        has_density: it has `log_prob` and `score`.
        has_inverse: it has `inverse`.
        has_images: samples are images, or are decoded to images: `to_uint8` works.

    Args:
        first_stage: the folder of the autoencoder of a model of latents; None: where it was in training.
    """

    def __init__(self, denoiser: nn.Module, facts: Facts, first_stage: str | None = None) -> None:
        super().__init__()
        if first_stage is not None and facts.first_stage is None:
            allowed = "this model is one of pixels, without a first stage: leave it out"
            raise ConfigError("first_stage.path", first_stage, allowed)
        known: Any = denoiser
        self.denoiser, self.facts = known, facts
        self.num_classes: int = known.num_classes
        self.has_density: bool = known.has_density
        self.has_inverse: bool = known.has_inverse
        self.normalized: bool = known.normalized
        self.has_images = facts.levels is not None or facts.first_stage is not None
        self._first_stage_path = first_stage

    def __getattr__(self, name: str) -> Any:
        """The facts, as `model.shape`, and what every module has."""
        if name in SHOWN:
            return getattr(self.facts, name)
        return super().__getattr__(name)

    @functools.cached_property
    def first_stage(self) -> FirstStage:
        """What encodes images to the model's latents and decodes these (`model.first_stage`)."""
        return open_first_stage(self.facts, self._first_stage_path)

    def encode(self, x: Tensor, seed: int = 0) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] to samples of their latents (B, *shape); of a model of pixels x itself."""
        if self.first_stage.trivial:
            return x
        return posterior_sample(self.first_stage.encode(x), torch.Generator().manual_seed(seed))

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, *shape) to images (B, C, H, W) in [-1, 1]; of a model of pixels z itself."""
        return z if self.first_stage.trivial else self.first_stage.decode(z)

    def denoise(self, x: Array, sigma: Numbers, labels: Classes = None) -> Tensor:
        """D(x; sigma, labels), the estimate of x0 from x = x0 + sigma·noise.

        Args:
            x: (B, *shape), a tensor or an array of floats.
            sigma: (B,) or one number, above 0.
            labels: (B,) in [0, K) or names of classes, one class for all, or None: the null class.

        Returns:
            (B, *shape), of the type of x.

        Raises:
            FlowdiffError: one of them can't be right (`model.inputs`).
        """
        given, points, levels, classes = self._inputs("x", x, sigma, labels)
        return self.denoiser.denoise(points, levels, classes).to(given)

    def forward(self, x: Array, sigma: Numbers, labels: Classes = None) -> Tensor:
        """`denoise`."""
        return self.denoise(x, sigma, labels)

    def log_prob(self, x: Array, sigma: Numbers, labels: Classes = None) -> Tensor:
        """log p(x; sigma, labels) in nats: (B,). Arguments as for `denoise`."""
        self._need_density()
        given, points, levels, classes = self._inputs("x", x, sigma, labels)
        log_prob = self.denoiser.log_prob(points, levels, classes)
        return log_prob.to(given.device, torch.promote_types(given.dtype, log_prob.dtype))

    def score(self, x: Array, sigma: Numbers, labels: Classes = None) -> Tensor:
        """The gradient of `log_prob` by x: (B, *shape). Arguments as for `denoise`."""
        self._need_density()
        given, points, levels, classes = self._inputs("x", x, sigma, labels)
        return self.denoiser.score(points, levels, classes).to(given)

    def latent(self, x: Array, sigma: Numbers, labels: Classes = None) -> Tensor:
        """z = f(x; sigma, labels), the shape of x; standard normal for samples of p(x; sigma). As for `denoise`."""
        self._need_density()
        given, points, levels, classes = self._inputs("x", x, sigma, labels)
        return self.denoiser.latent(points, levels, classes).to(given)

    def inverse(self, z: Array, sigma: Numbers, labels: Classes = None) -> Tensor:
        """The x whose `latent` is z, the shape of z: a sample of p(x; sigma) if z is standard normal."""
        self._need_density()
        given, points, levels, classes = self._inputs("z", z, sigma, labels)
        return self.denoiser.inverse(points, levels, classes).to(given)

    def sample(
        self,
        n: int,
        labels: Labels = "balanced",
        sampler: str | samplers.Sampler | None = None,
        *,
        seed: int = 0,
        seeds: Iterable[int] | None = None,
        quiet: bool = False,
        **how: Unpack[Sampling],
    ) -> Tensor:
        """`n` samples, each a function of its own seed and label.

        Args:
            n: how many.
            labels: `"balanced"` (0..K-1 in turn), one class, its number or its name (`"cat"`; `class_names`), a
                list of them, or None: the null class.
            sampler: a name (heun, ancestral, dpmpp_2m, mala, inversion_denoise, …: see conf/sampler), a `Sampler`,
                or None: the one of the training configuration.
            seed: sample i has the seed `seed + i`.
            seeds: n seeds in place of those.
            quiet: no progress.
            how: schedule, num_steps, sigma_min, sigma_max, sigma_start, guidance_scale, batch_size, tile, compile:
                `Sampling`.

        Returns:
            (n, *shape) on the CPU; images lie in [-1, 1].
        """
        n, seed = inputs.as_whole("n", n, 1), inputs.as_whole("seed", seed, 0)
        chosen = seeds_from(seed, n) if seeds is None else inputs.as_seeds(seeds, n)
        classes = resolve_labels(labels, n, self.num_classes, "labels", self.class_names)
        return self.batched(sampler, **how).draw(classes, chosen, quiet=quiet).x

    def inpaint(
        self,
        x: Tensor,
        mask: str | Tensor,
        labels: Labels = None,
        completions: int = 1,
        *,
        n_corrector: int = 4,
        batched: BatchedSampler | None = None,
        seed: int = 0,
        quiet: bool = False,
    ) -> Tensor:
        """Draw the missing pixels of images given the others.

        Args:
            x: (n, C, H, W) in [-1, 1]; the missing pixels are not looked at.
            mask: what is missing: left, right, top, bottom, center, random:P, a file (`samplers.masks`), or a bool
                tensor, True where a pixel is missing, that broadcasts to x.
            labels: the class of each image, see `Labels`.
            completions: of each image; number c of image i has the seed `seed + i·completions + c`.
            n_corrector: Metropolis-adjusted Langevin steps at each noise level; 0: replacement alone.
            batched: how, e.g. `model.batched("heun", num_steps=18)`; None: as in the training configuration. A
                sampler that begins at `sigma_start` gives way to 64 ancestral steps from sigma_max.
            seed: of the first completion.
            quiet: no progress.

        Returns:
            (n, completions, C, H, W) on the CPU; the pixels that were not missing are those of x.
        """
        x = inputs.as_floats("x", x)
        self._need_images(x, self.shape)
        at_least("completions", completions, 1)
        if isinstance(mask, Tensor):
            missing = mask.cpu().bool().expand(x.shape)
        else:
            missing = missing_pixels(mask, self.shape, first_seeds(seed, len(x), completions))
        return self._complete(Mask(missing), x, labels, completions, n_corrector, batched, seed, quiet)

    def super_resolution(
        self,
        x: Tensor,
        labels: Labels = None,
        completions: int = 1,
        *,
        n_corrector: int = 4,
        batched: BatchedSampler | None = None,
        seed: int = 0,
        quiet: bool = False,
    ) -> Tensor:
        """Draw images whose block means are the pixels of smaller ones.

        Args:
            x: (n, C, h, w) in [-1, 1], with a factor f = H/h = W/w that is a whole number above 1.
            labels, completions, n_corrector, batched, seed, quiet: as for `inpaint`.

        Returns:
            (n, completions, C, H, W) on the CPU; the means of their f x f blocks are x.
        """
        x = inputs.as_floats("x", x)
        factor = max(self.shape[-1] // max(x.shape[-1], 1), 2)
        self._need_images(x, (self.shape[0], *(size // factor for size in self.shape[1:])))
        at_least("completions", completions, 1)
        large = x.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        self._need_images(large, self.shape)
        return self._complete(BlockMean(factor), large, labels, completions, n_corrector, batched, seed, quiet)

    def _complete(
        self,
        known: Known,
        x: Tensor,
        labels: Labels,
        completions: int,
        n_corrector: int,
        batched: BatchedSampler | None,
        seed: int,
        quiet: bool,
    ) -> Tensor:
        classes = resolve_labels(labels, len(x), self.num_classes, "labels", self.class_names)
        how = batched or self.batched()
        done = complete(how, known, x.cpu(), classes, completions, seed, n_corrector, quiet=quiet)
        return done.drawn.x.unflatten(0, (len(x), completions))

    def batched(self, sampler: str | samplers.Sampler | None = None, **how: Unpack[Sampling]) -> BatchedSampler:
        """The sampler that `sample` draws with; arguments as there."""
        config, settings = dict(self.config), dict(how)
        given = (
            ("sampler", sampler, samplers.Sampler),
            ("schedule", settings.pop("schedule", None), schedules.Schedule),
        )
        for group, chosen, kind in given:
            if chosen is not None:
                config[group] = chosen if isinstance(chosen, kind) else find_choice(group, chosen, config)
        return from_config(self.denoiser, config, self.levels is not None, **cast(Any, settings))

    def from_uint8(self, images: Array) -> Tensor:
        """Bytes of images to the middles of their levels' bins in [-1, 1], the same shape: what `denoise` takes.

        Raises:
            FlowdiffError: they are no bytes, or the model's data are points.
        """
        if self.levels is None:
            raise FlowdiffError(f"{self.data}: this model sees no pixels")
        found = torch.as_tensor(images)
        if found.dtype != torch.uint8:
            raise FlowdiffError(f"images hold {str(found.dtype).removeprefix('torch.')}, must hold uint8")
        return centres(from_uint8(found, self.levels), self.levels)

    def to_uint8(self, x: Array) -> Tensor:
        """Images in [-1, 1] to bytes of the same shape, by way of the data's levels; latents are decoded."""
        x = inputs.as_floats("x", x)
        if self.facts.first_stage is not None:
            return self.first_stage.to_uint8(x, int(self.facts.first_stage["levels"]))
        if self.levels is None:
            raise FlowdiffError(f"{self.data}: points are not images and have no uint8 form")
        return to_uint8(to_levels(x, self.levels), self.levels)

    def _inputs(
        self, name: str, x: Array, sigma: Numbers, labels: Classes
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """x as it was given, then x, σ and the classes as the network computes with them."""
        like = next(self.parameters())
        given = inputs.as_floats(name, x)
        points = inputs.as_samples(name, given, self.shape, like)
        classes = inputs.as_labels(labels, points, self.num_classes, self.class_names)
        return given, points, inputs.as_sigma(sigma, points), classes

    def _need_images(self, x: Tensor, shape: tuple[int, ...]) -> None:
        if self.levels is None:
            kind = "latents have" if self.has_images else "points are not images and have"
            raise FlowdiffError(f"{self.data}: {kind} no pixels to fill in")
        if x.dim() != len(shape) + 1 or tuple(x.shape[1:]) != tuple(shape):
            raise FlowdiffError(f"x has the shape {tuple(x.shape)}, must be (n, {', '.join(str(n) for n in shape)})")

    def _need_density(self) -> None:
        if not self.has_density:
            raise FlowdiffError(f"this checkpoint holds a {type(self.denoiser).__name__}, which has no density")


def load(
    path: str | os.PathLike[str],
    weights: str = "ema",
    device: str | torch.device = "cpu",
    first_stage: str | None = None,
    config_dir: str | os.PathLike[str] | None = None,
) -> Model:
    """The model of a checkpoint; nothing but the file is needed, and to decode a model of latents its autoencoder.

    Args:
        path: a `.ckpt` file, the folder of an exported model (`flowdiff.export`), its `.safetensors` file, or the name
            of a model that ships with the package: digits, two_moons (`model.ready`).
        weights: `"ema"`, `"raw"` or, of a run with callbacks=averages, `"ema:0.08"`; an exported model has those
            that it was exported with.
        device: where the model goes.
        first_stage: where the autoencoder of a model of latents is now; None: where it was in training.
        config_dir: a folder of YAML files that name classes of your own, the one that `--config-dir` gave to the
            training; their modules are on `sys.path`.
    """
    if config_dir is not None:
        add_folder(config_dir)
    return Model(*checkpoint.load(path, weights), first_stage).to(device)
