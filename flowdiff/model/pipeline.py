r"""A flowdiff model as a pipeline of diffusers.

    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)     or FlowdiffPipeline.from_pretrained
    pipe(batch_size=4, class_labels=[0, 1, 2, 3], num_inference_steps=20).images

The network predicts the clean image, D(x; σ, c) of x = x0 + σε. Any scheduler of diffusers that steps in σ and takes
such a prediction (`prediction_type="sample"`) samples from it:

    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)

Whatever scale a scheduler steps in, what its `scale_model_input` hands to a network is (x0 + σε)/√(1 + σ²), so

    x = √(1 + σ²)·scale_model_input(x_t, t).

The folder is read with flowdiff installed. Its pipeline.py only imports this module; the denoiser's configuration is
built by `model.safe_construction`, and its weights are safetensors.
"""

import inspect
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, DiffusionPipeline, EulerDiscreteScheduler, ImagePipelineOutput, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from flowdiff.data.first_stage import units
from flowdiff.data.labels import resolve_labels
from flowdiff.data.quantise import to_levels, to_uint8
from flowdiff.denoisers.wrappers import Clipped, Guided
from flowdiff.errors import ConfigError, FlowdiffError, at_least
from flowdiff.files import write_json, write_text
from flowdiff.model.checkpoint import Stored, build_denoiser
from flowdiff.model.facts import check_entry
from flowdiff.model.format_1 import as_format_2

CODE = '"""The class is part of the package flowdiff."""\n\nfrom flowdiff.model.pipeline import FlowdiffPipeline\n'
#: The schedules that EulerDiscreteScheduler has too, by their names in conf/schedule.
SPACINGS = {"karras": {"use_karras_sigmas": True}, "geometric": {"use_exponential_sigmas": True}}


class FlowdiffDenoiser(ModelMixin, ConfigMixin):
    """D(x, σ, labels) as a model of diffusers.

    Args:
        entry: what a checkpoint says of itself, `model.checkpoint.describe`: plain values.

    Raises:
        FlowdiffError: its configuration names anything but classes of flowdiff.
    """

    @register_to_config
    def __init__(self, entry: dict[str, Any]) -> None:
        super().__init__()
        entry = as_format_2(check_entry(entry))
        shape = tuple(entry["shape"])
        denoiser: Any = build_denoiser(entry["config"], shape, entry["num_classes"])
        self.denoiser = denoiser
        self.shape = shape
        self.num_classes: int = denoiser.num_classes
        self.class_names: list[str] | None = entry.get("class_names")
        self.levels: int = (entry.get("first_stage") or entry)["levels"]  # of a pixel
        self.of_latents = entry["levels"] is None

    def forward(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """The estimate of x0, shape of x.

        Args:
            x: (B, *shape), x0 + σε.
            sigma: (B,) or one number.
            labels: (B,) in [0, K), or None: the null class.
        """
        return self.denoiser(x, sigma, labels)


class FlowdiffPipeline(DiffusionPipeline):
    """Images from noise, by a flowdiff denoiser and any scheduler of diffusers that takes steps in σ.

    Args:
        denoiser: the model.
        scheduler: with `sigmas` and `prediction_type="sample"`.
        vae: the AutoencoderKL that decodes a model of latents; None: the model is one of pixels.
    """

    model_cpu_offload_seq = "denoiser->vae"
    _optional_components = ["vae"]

    def __init__(self, denoiser: FlowdiffDenoiser, scheduler: Any, vae: Any = None) -> None:
        super().__init__()
        self.register_modules(denoiser=denoiser, scheduler=scheduler, vae=vae)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        class_labels: int | str | Sequence[int | str] | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw images.

        Args:
            batch_size: how many; None: as many as there are labels or latents, or one.
            class_labels: one class for all, by number or name, one for each image, or None: the null class.
            num_inference_steps: the scheduler's.
            guidance_scale: D_null + w (D_c - D_null); w = 1 is no guidance.
            generator: one for all, or a list with one for each image.
            latents: (batch_size, C, H, W) standard normals to begin with, in place of fresh ones.
            output_type: pil; np: (B, H, W, C) in [0, 1]; pt: (B, C, H, W) in [0, 1]; latent: what `vae` decodes.
            return_dict: False: a tuple of the images.

        Raises:
            FlowdiffError: a wrong label, scheduler, size or output type.
        """
        n, labels = self._read_arguments(batch_size, class_labels, latents)
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ConfigError("output_type", output_type, "must be pil, np, pt or latent")
        at_least("num_inference_steps", num_inference_steps, 1)
        device, shape = self._execution_device, (n, *self.denoiser.shape)
        labels = None if labels is None else labels.to(device)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=self.denoiser.dtype)
        if tuple(latents.shape) != shape:
            raise ConfigError("latents", tuple(latents.shape), f"must have the shape {shape}")
        x = self._sample(latents.to(device), labels, num_inference_steps, guidance_scale, generator)
        images = self._finish(x, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _read_arguments(
        self, batch_size: int | None, class_labels: int | str | Sequence[int | str] | None, latents: Tensor | None
    ) -> tuple[int, Tensor | None]:
        """The number of images and their classes."""
        given = None if class_labels is None or isinstance(class_labels, int | str) else len(class_labels)
        n = batch_size if batch_size is not None else given or (1 if latents is None else len(latents))
        at_least("batch_size", n, 1)
        if given is not None and given != n:
            raise ConfigError("class_labels", class_labels, f"must be one class, or {n}: one for each image")
        return n, resolve_labels(class_labels, n, self.denoiser.num_classes, "class_labels", self.denoiser.class_names)

    def _sample(
        self,
        noise: Tensor,
        labels: Tensor | None,
        num_inference_steps: int,
        guidance_scale: float,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> Tensor:
        """The scheduler's walk from noise to x0, (B, *shape) in the model's space."""
        scheduler = self.scheduler
        if getattr(scheduler.config, "prediction_type", None) != "sample" or not hasattr(scheduler, "sigmas"):
            name = type(scheduler).__name__
            raise ConfigError("scheduler", name, 'must step in sigma and have prediction_type="sample", as Euler, Heun')
        denoiser: Any = self.denoiser.denoiser
        if guidance_scale != 1 and self.denoiser.num_classes == 0:
            raise ConfigError("guidance_scale", guidance_scale, "this model has no classes to guide by: leave it at 1")
        if guidance_scale != 1 and labels is not None:  # without a class both terms are the same
            denoiser = Guided(denoiser, guidance_scale)
        if not self.denoiser.of_latents:
            denoiser = Clipped(denoiser, -1.0, 1.0)  # as all samplers of flowdiff do with pixels
        scheduler.set_timesteps(num_inference_steps, device=noise.device)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)  # several low σ can share a timestep; steps are counted, not looked up
        accepted = inspect.signature(scheduler.step).parameters
        extra = {"generator": generator} if "generator" in accepted else {}
        x = noise * scheduler.init_noise_sigma
        for i, t in enumerate(self.progress_bar(scheduler.timesteps)):
            sigma = float(scheduler.sigmas[i])
            scaled = scheduler.scale_model_input(x, t)
            given = scaled * math.sqrt(1 + sigma**2)
            denoised = denoiser(given, given.new_full((len(given),), sigma), labels)
            x = scheduler.step(denoised, t, x, **extra).prev_sample
        return x

    def _finish(self, x: Tensor, output_type: str) -> Any:
        """x0 as the images that were asked for; PIL's by way of the data's levels, as flowdiff's own."""
        if output_type == "latent":
            return x
        if self.vae is not None:
            shift, scale = units(self.vae)
            x = self.vae.decode((x / scale + shift).to(self.vae.dtype)).sample
        if output_type == "pt":
            return (x / 2 + 0.5).clamp(0, 1)
        if output_type == "np":
            return (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().float().numpy()
        levels = self.denoiser.levels
        pixels = to_uint8(to_levels(x.cpu().float(), levels), levels).permute(0, 2, 3, 1)
        return [Image.fromarray((p[..., 0] if p.shape[-1] == 1 else p).numpy()) for p in pixels]

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As every pipeline's, with the file by which `DiffusionPipeline.from_pretrained` finds this class."""
        super().save_pretrained(save_directory, *args, **kwargs)
        folder = Path(save_directory)
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        write_json(folder / "model_index.json", index | {"_class_name": ["pipeline", type(self).__name__]})
        write_text(folder / "pipeline.py", CODE)


def pipeline_of(model: Stored, vae: Any = None) -> FlowdiffPipeline:
    """A pipeline with the model's weights, and Euler's steps on its schedule (Karras', where diffusers has no such).

    Args:
        model: a checkpoint's.
        vae: the autoencoder of a model of latents.

    Raises:
        FlowdiffError: its data are points.
    """
    entry = model.facts.entry
    if entry["levels"] is None and vae is None:
        raise FlowdiffError(f"format=diffusers: {entry['data']}: points are not images; format=safetensors takes them")
    denoiser = FlowdiffDenoiser({**entry, "step": model.facts.step, "weights": model.facts.weights})
    denoiser.denoiser.load_state_dict(model.state)
    return FlowdiffPipeline(denoiser.eval(), scheduler_of(entry["config"]), vae)


def scheduler_of(config: Mapping[str, Any]) -> EulerDiscreteScheduler:
    """Euler's method from sigma_max to sigma_min as the configuration's `schedule` places the levels.

    Where diffusers has no such schedule the levels are Karras', and that is said.
    """
    schedule = config["schedule"]
    name = str(schedule["_target_"]).rpartition(".")[2].lower()
    if name not in SPACINGS:
        print(f"diffusers has no schedule={name}: the pipeline's noise levels are Karras'", flush=True)
    return EulerDiscreteScheduler(
        prediction_type="sample",
        timestep_spacing="linspace",  # begins at σ_max, not at √(1 + σ_max²)
        sigma_min=float(schedule["sigma_min"]),
        sigma_max=float(schedule["sigma_max"]),
        **SPACINGS.get(name, SPACINGS["karras"]),
    )
