r"""Pixels ↔ latents: what a model of latents is trained on and decoded by (Rombach et al. 2022, arXiv:2112.10752).

An autoencoder with a Gaussian posterior (Kingma & Welling 2013, arXiv:1312.6114) maps an image x to

    z = (μ(x) + ς(x)·ε − shift)·scale,        ε standard normal, drawn anew each time,

and a latent back to x̂ = decoder(z/scale + shift). Shift and scale stand in the autoencoder's own configuration; they
bring the latents to mean 0 and variance 1 (SDXL: scale 0.13025, no shift).
"""

import hashlib
import json
import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from flowdiff.data.quantise import to_levels, to_uint8
from flowdiff.errors import ConfigError, FlowdiffError, how_to_install, one_line, spell
from flowdiff.files import read_json
from flowdiff.options import OUTSIDE, Count, checked
from flowdiff.progress import Progress

LARGEST = 65_536  # number in an autoencoder's configuration
PIXELS = 1 << 20  # pixels that pass through an autoencoder at once, if nothing else is said


class FirstStage:
    """Base of the first stages. A new one is a subclass and one YAML in conf/first_stage.

    Attributes:
        trivial: pixels are the latents, and there is nothing to encode or decode.
        cache: folder for the encoded data; None: the default of `data.latents`.
        fingerprint: a hash of all that encoding and decoding depend on.
    """

    trivial = False
    cache: str | None = None

    @property
    def fingerprint(self) -> str:
        raise NotImplementedError

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the latents of images (C, H, W).

        Raises:
            ConfigError: it has none for such images.
        """
        raise NotImplementedError

    def encode(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] to the mean and the standard deviation of z, (B, 2, c, h, w) on the CPU."""
        raise NotImplementedError

    def decoded(self, z: Tensor) -> Iterator[Tensor]:
        """Images (b, C, H, W) on the CPU of some latents (B, c, h, w) after others, few at a time."""
        raise NotImplementedError

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, c, h, w) to images (B, C, H, W) on the CPU."""
        return torch.cat(list(self.decoded(z)))

    def to_uint8(self, z: Tensor, levels: int) -> Tensor:
        """Latents (B, c, h, w) to bytes (B, C, H, W), by way of the L levels of the data's pixels."""
        parts = []
        with Progress("decoding", len(z)) as progress:
            for images in self.decoded(z):
                parts.append(to_uint8(to_levels(images, levels), levels))
                progress.advance(len(images))
        return torch.cat(parts)


def posterior_sample(moments: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Mean and standard deviation (B, 2, c, h, w) to z = mean + deviation·ε, (B, c, h, w)."""
    mean, deviation = moments.unbind(1)
    return mean + deviation * torch.randn(mean.shape, generator=generator, device=mean.device)


class Identity(FirstStage):
    """No first stage: the model is one of pixels."""

    trivial = True


class AutoencoderKL(FirstStage):
    """diffusers' AutoencoderKL, frozen.

    Args:
        path: a folder that diffusers or `experiment=autoencoder_mnist` has written (of an autoencoder, or of a
            pipeline with a `vae` in it), or a name on the hub.
        slice: images that pass through it at once; None: as many as have 2^20 pixels.
        cache: folder for the encoded data (`data.latents`); None: FLOWDIFF_CACHE, or ~/.cache/flowdiff.
        device: auto (a GPU if there is one), cpu, cuda, …

    Raises:
        FlowdiffError: nothing readable there, or diffusers is not installed.
    """

    @checked
    def __init__(
        self,
        path: Annotated[str | None, OUTSIDE] = None,
        slice: Count | None = None,
        cache: Annotated[str | None, OUTSIDE] = None,
        device: str = "auto",
    ) -> None:
        if not path:
            raise ConfigError(
                "first_stage.path",
                "null",
                "must be an autoencoder's folder, as RUN/autoencoder of experiment=autoencoder_mnist, or a hub name",
            )
        self.path = str(path)
        self.slice = slice
        self.cache = cache
        self.device = torch.device(
            ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device,
        )
        self.network = read_autoencoder(self.path).to(self.device)
        config = self.network.config
        self.channels = int(config.in_channels)
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        self.shift, self.scale = units(self.network)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights and of shift and scale."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().cpu().numpy().tobytes())
        digest.update(json.dumps([self.shift.flatten().tolist(), self.scale.flatten().tolist()]).encode())
        return digest.hexdigest()

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) != 3 or shape[0] != self.channels:
            allowed = f"this autoencoder is one of images with {self.channels} channel(s), the data's shape is {shape}"
            raise ConfigError("first_stage.path", self.path, allowed)
        if shape[1] % self.factor or shape[2] % self.factor:
            allowed = f"it divides height and width by {self.factor}, which {shape[1]}×{shape[2]} can't be"
            raise ConfigError("first_stage.path", self.path, allowed)
        return (int(self.network.config.latent_channels), shape[1] // self.factor, shape[2] // self.factor)

    def _slices(self, x: Tensor, pixels: int) -> Iterator[Tensor]:
        """As many rows at once as its memory is meant for."""
        return iter(x.split(self.slice or max(1, PIXELS // pixels)))

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        moments = []
        for part in self._slices(x, math.prod(x.shape[-2:])):
            posterior = self.network.encode(part.to(self.device)).latent_dist
            found = torch.stack([(posterior.mean - self.shift) * self.scale, posterior.std * self.scale], 1)
            moments.append(found.float().cpu())
        return torch.cat(moments)

    def decoded(self, z: Tensor) -> Iterator[Tensor]:
        for part in self._slices(z, math.prod(z.shape[-2:]) * self.factor**2):
            with torch.no_grad():
                z0 = part.to(self.device, self.shift.dtype) / self.scale + self.shift
                images: Tensor = self.network.decode(z0).sample.float().cpu()
            yield images  # outside of no_grad: whoever goes over them would be inside it


def units(network: Any) -> tuple[Tensor, Tensor]:
    """Shift and scale, (1, c, 1, 1) each, that the configuration of diffusers' AutoencoderKL gives its latents.

    One number for all channels (`shift_factor`, `scaling_factor`), or one for each (`latents_mean` and
    `latents_std`, as diffusers' pipelines use them: z/scaling_factor·std + mean is decoded).
    """
    config, device = network.config, network.device
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    shift = torch.tensor(mean if mean is not None else [getattr(config, "shift_factor", None) or 0.0], device=device)
    spread = torch.tensor(std if std is not None else [1.0], device=device)
    shape = (1, int(config.latent_channels), 1, 1)
    scale = float(config.scaling_factor) / spread
    return shift.expand(shape[1]).reshape(shape), scale.expand(shape[1]).reshape(shape)


def check_sizes(path: str, file: Path) -> None:
    """Refuse an autoencoder's configuration whose numbers would fill the memory before its weights are looked at.

    Raises:
        ConfigError: it is no configuration, or has such numbers.
    """
    try:
        config = read_json(file)
        if not isinstance(config, dict):
            raise FlowdiffError("is no configuration of diffusers")
        for name, value in config.items():
            numbers = value if isinstance(value, list) else [value]
            if len(numbers) > 64 or any(isinstance(n, int) and abs(n) > LARGEST for n in numbers):
                raise FlowdiffError(f"its {spell(str(name))} is beyond any autoencoder's")
    except FlowdiffError as error:
        raise ConfigError(
            "first_stage.path", path, f"not an autoencoder that can be read ({file.name} {error})"
        ) from error


def read_autoencoder(path: str) -> Any:
    """diffusers' AutoencoderKL from a folder or the hub, in float32 and eval mode, without gradients.

    Only safetensors are read: a pickle from a stranger could run code.

    Raises:
        FlowdiffError: there is none that can be read, or diffusers is not installed.
    """
    try:
        from diffusers import AutoencoderKL as Network
    except ImportError as error:
        raise FlowdiffError(f"first_stage=autoencoder_kl needs diffusers: {how_to_install('latent')}") from error
    folder = Path(path).expanduser()
    places = (folder, folder / "vae", folder / "autoencoder")  # an autoencoder, a pipeline, a run
    found = next((place for place in places if (place / "config.json").is_file()), None)
    if found is None and folder.exists():
        allowed = "no autoencoder of diffusers lies there (config.json and diffusion_pytorch_model.safetensors)"
        raise ConfigError("first_stage.path", path, allowed)
    if found is None and (folder.is_absolute() or path.startswith((".", "~")) or path.count("/") != 1):
        raise ConfigError("first_stage.path", path, "there is no such folder")
    if found is not None:
        check_sizes(path, found / "config.json")
    try:
        if found is None:  # on the hub: a whole pipeline, or an autoencoder alone
            try:
                network = Network.from_pretrained(path, use_safetensors=True, subfolder="vae")
            except OSError:
                network = Network.from_pretrained(path, use_safetensors=True)
        else:
            network = Network.from_pretrained(found, use_safetensors=True)
    except Exception as error:  # diffusers, huggingface_hub and safetensors each have their own
        allowed = f"not an autoencoder that can be read ({type(error).__name__}: {one_line(error, 200)})"
        raise ConfigError("first_stage.path", path, allowed) from error
    return network.float().eval().requires_grad_(False)
