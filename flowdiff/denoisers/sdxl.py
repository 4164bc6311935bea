r"""A pretrained SDXL (Podell et al. 2023, arXiv:2307.01952) as a denoiser D(x, σ, c) of its latents, frozen.

Its U-Net was trained on x_t = √ᾱ_t x0 + √(1 − ᾱ_t) ε, t = 0 … T − 1. With σ_t = √((1 − ᾱ_t)/ᾱ_t) that is
x_t = x/√(σ_t² + 1), x = x0 + σ_t ε, as in diffusers' EulerDiscreteScheduler:

    t(σ)     = the linear interpolation of t in log σ_t, held to [0, T − 1]
    out      = UNet(x/√(σ² + 1), t(σ), text)
    D(x, σ)  = x − σ·out                             prediction_type epsilon
    D(x, σ)  = x/(σ² + 1) − σ/√(σ² + 1)·out          prediction_type v_prediction

x0 are latents in SDXL's scaled space (0.13025 times those of its autoencoder). A class is the text of a prompt made of
its name, embedded once by the pipeline's own text encoders; the null class is what the pipeline takes for no prompt.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from flowdiff.data.statistics import DataStatistics
from flowdiff.denoisers.base import UNPERTURBED, Denoiser, Perturbation, Sigma, batch_sigma
from flowdiff.denoisers.diffusers_unets import import_class
from flowdiff.errors import ConfigError, FlowdiffError, one_line
from flowdiff.nn.attention import attention_for
from flowdiff.options import OUTSIDE, Length, Size, checked
from flowdiff.tensors import per_sample

DTYPES = ("float32", "float16", "bfloat16")
PREDICTIONS = ("epsilon", "v_prediction")
WEIGHTS = ("unet", "text_encoder", "text_encoder_2")


class SDXL(Denoiser):
    """D of the SDXL in a folder.

    Args:
        shape: of a latent, (4, h, w).
        num_classes: K, 0 for none: then there is the null class alone.
        path: a folder that diffusers has written (unet, scheduler, tokenizer, tokenizer_2, text_encoder,
            text_encoder_2), or a name on the hub. Only safetensors are read.
        prompt: the text for a class, {} is its name.
        prompts: one for each class in place of those.
        class_names: K names; None: 0 … K − 1.
        image_size: height and width that the model is told (its size conditioning); None: 8 times the latent's.
        dtype: of the weights: float32, float16, bfloat16.
        variant: of the files, as fp16; None: the plain ones.

    Raises:
        ConfigError: one of them is not allowed.
        FlowdiffError: what is in the folder is missing, not to be read, or not an SDXL for such data.
    """

    frozen = (
        "denoiser=sdxl: frozen, there is nothing to train; it is measured beside a checkpoint by "
        "python -m flowdiff.evaluate ckpt_path=… denoiser=sdxl denoiser.path=…"
    )
    log_sigmas: Tensor
    prompt_embeds: Tensor
    pooled_prompt_embeds: Tensor
    time_ids: Tensor

    @checked
    def __init__(
        self,
        shape: tuple[int, ...],
        num_classes: int,
        path: Annotated[str | None, OUTSIDE] = None,
        prompt: str = "a photo of a {}",
        prompts: Sequence[str] | None = None,
        class_names: Sequence[str] | None = None,
        image_size: Annotated[Sequence[Size], Length(2, 2)] | None = None,
        dtype: Literal["float32", "float16", "bfloat16"] = "float32",
        variant: str | None = None,
    ) -> None:
        super().__init__(shape, num_classes)
        names = [str(c) for c in range(num_classes)] if class_names is None else list(class_names)
        texts = [prompt.replace("{}", name) for name in names] if prompts is None else [str(text) for text in prompts]
        if len(texts) != num_classes:
            raise ConfigError("denoiser.prompts", list(texts), f"must be {num_classes}, one for each class")
        if dtype not in DTYPES:
            raise ConfigError("denoiser.dtype", dtype, f"must be one of {', '.join(DTYPES)}")
        if image_size is not None and len(image_size) != 2:
            raise ConfigError("denoiser.image_size", list(image_size), "must be null or two numbers, as [1024,1024]")
        folder = Folder(path, variant)
        self.prediction_type, log_sigmas = folder.scheduler()
        self.unet = folder.unet(self.shape, getattr(torch, dtype))
        tokens, pooled = folder.text(texts)
        height, width = image_size or (8 * shape[1], 8 * shape[2])
        self.register_buffer("log_sigmas", log_sigmas, persistent=False)
        self.register_buffer("prompt_embeds", tokens, persistent=False)
        self.register_buffer("pooled_prompt_embeds", pooled, persistent=False)
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32)  # original, crop, target
        self.register_buffer("time_ids", sizes, persistent=False)
        self.eval().requires_grad_(False)

    def fit(self, statistics: DataStatistics) -> None:
        raise FlowdiffError(self.frozen)

    def timestep(self, sigma: Tensor) -> Tensor:
        """t(σ), (B,) to (B,)."""
        table = self.log_sigmas
        log_sigma = sigma.to(table.dtype).log()
        low = (torch.searchsorted(table, log_sigma, right=True) - 1).clamp(0, len(table) - 2)
        share = (log_sigma - table[low]) / (table[low + 1] - table[low])
        return low + share.clamp(0, 1)

    def denoise_text(
        self,
        x: Tensor,
        sigma: Sigma,
        prompt_embeds: Tensor,
        pooled_prompt_embeds: Tensor,
        time_ids: Tensor | None = None,
    ) -> Tensor:
        """D(x, σ, text), shape of x.

        Args:
            x: (B, 4, h, w).
            sigma: (B,), or one number for all.
            prompt_embeds: (B, tokens, 2048), and
            pooled_prompt_embeds: (B, 1280): of `StableDiffusionXLPipeline.encode_prompt`.
            time_ids: (B, 6), height and width of the original, top and left of the crop, height and width of the
                target; None: those of `image_size`, not cropped.
        """
        levels, dtype = batch_sigma(sigma, x), self.unet.dtype
        ids = self.time_ids.expand(len(x), -1) if time_ids is None else time_ids
        added = {"text_embeds": pooled_prompt_embeds.to(dtype), "time_ids": ids.to(dtype)}
        t = self.timestep(levels)
        levels = per_sample(levels, x)
        total = (levels.square() + 1).sqrt()
        with attention_for(False, x):
            scaled, text = (x / total).to(dtype), prompt_embeds.to(dtype)
            out = self.unet(scaled, t, text, added_cond_kwargs=added, return_dict=False)[0].to(x.dtype)
        if self.prediction_type == "epsilon":
            return x - levels * out
        return x / total.square() - levels / total * out

    def denoise(
        self, x: Tensor, sigma: Sigma, labels: Tensor | None = None, perturbation: Perturbation = UNPERTURBED
    ) -> Tensor:
        classes = self._classes(x, labels, perturbation.drop)
        return self.denoise_text(x, sigma, self.prompt_embeds[classes], self.pooled_prompt_embeds[classes])


class Folder:
    """The parts of a pipeline of diffusers, each read as the class that SDXL has there, whatever the folder names.

    Args:
        path, variant: as of `SDXL`.
    """

    def __init__(self, path: str | None, variant: str | None = None) -> None:
        hub = "or a name on the hub, as stabilityai/stable-diffusion-xl-base-1.0"
        if not path:
            raise ConfigError(
                "denoiser.path", "null", f"must be the folder of an SDXL that diffusers has written, {hub}"
            )
        folder = Path(path).expanduser()
        here = folder.is_absolute() or path.startswith((".", "~")) or path.count("/") != 1
        if not folder.is_dir() and (here or folder.exists()):
            raise ConfigError(
                "denoiser.path", path, f"there is no such folder; give one that diffusers has written, {hub}"
            )
        self.given, self.path = path, str(folder) if folder.is_dir() else path
        self.weights = {"use_safetensors": True, "variant": variant}

    @contextmanager
    def _explain_reading(self, part: str) -> Iterator[None]:
        try:
            yield
        except FlowdiffError:
            raise
        except Exception as error:  # diffusers, transformers, huggingface_hub and safetensors each have their own
            only = " (of weights only safetensors are)" if part in WEIGHTS else ""
            allowed = f"its {part} can't be read{only}; {type(error).__name__}: {one_line(error, 200)}"
            raise ConfigError("denoiser.path", self.given, allowed) from error

    def scheduler(self) -> tuple[str, Tensor]:
        """The prediction_type, and log σ_t (T,), ascending."""
        scheduler = import_class("EulerDiscreteScheduler")
        with self._explain_reading("scheduler"):
            config = scheduler.load_config(self.path, subfolder="scheduler")
            if not {"beta_schedule", "trained_betas"} & set(config) or config.get("timestep_type") == "continuous":
                name = config.get("_class_name")
                raise ConfigError(
                    "denoiser.path", self.given, f"its scheduler {name} has no discrete noise levels of betas"
                )
            euler = scheduler.from_config(config)
        kind = str(euler.config.prediction_type)
        if kind not in PREDICTIONS:
            raise ConfigError(
                "denoiser.path", self.given, f"its prediction_type {kind} is none of {', '.join(PREDICTIONS)}"
            )
        return kind, ((1 - euler.alphas_cumprod) / euler.alphas_cumprod).sqrt().log()

    def unet(self, shape: tuple[int, ...], dtype: torch.dtype) -> Any:
        """The U-Net, if it is an SDXL's and takes latents of this shape."""
        network = import_class("UNet2DConditionModel")
        with self._explain_reading("unet"):
            config = network.load_config(self.path, subfolder="unet")
            if config.get("addition_embed_type") != "text_time":
                raise ConfigError("denoiser.path", self.given, "its unet is not SDXL's (addition_embed_type=text_time)")
            if len(shape) != 3 or config.get("in_channels") != shape[0]:
                allowed = f"its unet takes {config.get('in_channels')} channels, the data have the shape {tuple(shape)}"
                raise ConfigError("denoiser.path", self.given, allowed)
            return network.from_pretrained(self.path, subfolder="unet", torch_dtype=dtype, **self.weights)

    @torch.no_grad()
    def text(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The embeddings of K prompts and, as row K, of none: (K + 1, tokens, E) and pooled (K + 1, P), float32."""
        pipeline = import_class("StableDiffusionXLPipeline")
        import transformers

        kinds = {"tokenizer": "CLIPTokenizer", "text_encoder": "CLIPTextModel"}
        kinds |= {"tokenizer_2": "CLIPTokenizer", "text_encoder_2": "CLIPTextModelWithProjection"}
        parts: dict[str, Any] = {}
        for part, kind in kinds.items():
            with self._explain_reading(part):
                options = self.weights if part in WEIGHTS else {}
                parts[part] = getattr(transformers, kind).from_pretrained(self.path, subfolder=part, **options)
                if options:
                    parts[part] = parts[part].float().eval()
        with self._explain_reading("model_index.json"):
            zeros = pipeline.load_config(self.path).get("force_zeros_for_empty_prompt", True)
        whole = pipeline(
            **parts, vae=None, unet=None, scheduler=None, force_zeros_for_empty_prompt=zeros, add_watermarker=False
        )
        tokens, pooled = [], []
        with self._explain_reading("text encoders"):
            for text in prompts:
                found = whole.encode_prompt(text, device=torch.device("cpu"), do_classifier_free_guidance=False)
                tokens.append(found[0])
                pooled.append(found[2])
            _, none, _, pooled_none = whole.encode_prompt("", device=torch.device("cpu"))
        return torch.cat([*tokens, none]), torch.cat([*pooled, pooled_none])
