r"""A pretrained SDXL (Podell et al. 2023, arXiv:2307.01952) as a denoiser D(x, σ, c) of its latents, frozen.

Noise levels, and D of what the U-Net predicts: `denoisers.ready_made`.

x0 are latents in SDXL's scaled space (0.13025 times those of its autoencoder). A class is the text of a prompt made of
its name, embedded once by the pipeline's own text encoders; the null class is what the pipeline takes for no prompt.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from flowdiff.denoisers.base import UNPERTURBED, Perturbation, Sigma
from flowdiff.denoisers.diffusers_unets import import_class
from flowdiff.denoisers.ready_made import Folder, ReadyMade
from flowdiff.errors import ConfigError
from flowdiff.options import OUTSIDE, Length, Size, checked

DTYPES = ("float32", "float16", "bfloat16")


class SDXL(ReadyMade):
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
        names = [str(c) for c in range(num_classes)] if class_names is None else list(class_names)
        texts = [prompt.replace("{}", name) for name in names] if prompts is None else [str(text) for text in prompts]
        if len(texts) != num_classes:
            raise ConfigError("denoiser.prompts", list(texts), f"must be {num_classes}, one for each class")
        if dtype not in DTYPES:
            raise ConfigError("denoiser.dtype", dtype, f"must be one of {', '.join(DTYPES)}")
        if image_size is not None and len(image_size) != 2:
            raise ConfigError("denoiser.image_size", list(image_size), "must be null or two numbers, as [1024,1024]")
        folder = Pipeline(path, variant)
        super().__init__(shape, num_classes, *folder.scheduler())
        self.unet = folder.unet(self.shape, getattr(torch, dtype))
        tokens, pooled = folder.text(texts)
        height, width = image_size or (8 * shape[1], 8 * shape[2])
        self.register_buffer("prompt_embeds", tokens, persistent=False)
        self.register_buffer("pooled_prompt_embeds", pooled, persistent=False)
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32)  # original, crop, target
        self.register_buffer("time_ids", sizes, persistent=False)
        self.eval().requires_grad_(False)

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
        dtype = self.unet.dtype
        ids = self.time_ids.expand(len(x), -1) if time_ids is None else time_ids
        added = {"text_embeds": pooled_prompt_embeds.to(dtype), "time_ids": ids.to(dtype)}
        text = prompt_embeds.to(dtype)
        return self.estimate(
            x,
            sigma,
            lambda scaled, t: self.unet(scaled.to(dtype), t, text, added_cond_kwargs=added, return_dict=False)[0],
        )

    def denoise(
        self, x: Tensor, sigma: Sigma, labels: Tensor | None = None, perturbation: Perturbation = UNPERTURBED
    ) -> Tensor:
        classes = self._classes(x, labels, perturbation.drop)
        return self.denoise_text(x, sigma, self.prompt_embeds[classes], self.pooled_prompt_embeds[classes])


class Pipeline(Folder):
    """The parts of SDXL's pipeline.

    Args:
        path, variant: as of `SDXL`.
    """

    weights = ("unet", "text_encoder", "text_encoder_2")

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
        super().__init__(path, str(folder) if folder.is_dir() else path)
        self.options = {"use_safetensors": True, "variant": variant}

    def unet(self, shape: tuple[int, ...], dtype: torch.dtype) -> Any:
        """The U-Net, if it is an SDXL's and takes latents of this shape."""
        network = import_class("UNet2DConditionModel")
        with self.explain_reading("unet"):
            config = network.load_config(self.path, subfolder="unet")
            if config.get("addition_embed_type") != "text_time":
                raise self.refuse("its unet is not SDXL's (addition_embed_type=text_time)")
            if len(shape) != 3 or config.get("in_channels") != shape[0]:
                allowed = f"its unet takes {config.get('in_channels')} channels, the data have the shape {tuple(shape)}"
                raise self.refuse(allowed)
            return network.from_pretrained(self.path, subfolder="unet", torch_dtype=dtype, **self.options)

    @torch.no_grad()
    def text(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The embeddings of K prompts and, as row K, of none: (K + 1, tokens, E) and pooled (K + 1, P), float32."""
        pipeline = import_class("StableDiffusionXLPipeline")
        import transformers

        kinds = {"tokenizer": "CLIPTokenizer", "text_encoder": "CLIPTextModel"}
        kinds |= {"tokenizer_2": "CLIPTokenizer", "text_encoder_2": "CLIPTextModelWithProjection"}
        parts: dict[str, Any] = {}
        for part, kind in kinds.items():
            with self.explain_reading(part):
                options = self.options if part in self.weights else {}
                parts[part] = getattr(transformers, kind).from_pretrained(self.path, subfolder=part, **options)
                if options:
                    parts[part] = parts[part].float().eval()
        with self.explain_reading("model_index.json"):
            zeros = pipeline.load_config(self.path).get("force_zeros_for_empty_prompt", True)
        whole = pipeline(
            **parts, vae=None, unet=None, scheduler=None, force_zeros_for_empty_prompt=zeros, add_watermarker=False
        )
        tokens, pooled = [], []
        with self.explain_reading("text encoders"):
            for text in prompts:
                found = whole.encode_prompt(text, device=torch.device("cpu"), do_classifier_free_guidance=False)
                tokens.append(found[0])
                pooled.append(found[2])
            _, none, _, pooled_none = whole.encode_prompt("", device=torch.device("cpu"))
        return torch.cat([*tokens, none]), torch.cat([*pooled, pooled_none])
