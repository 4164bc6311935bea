r"""A UNet2DModel that diffusers has trained (Ho et al. 2020, arXiv:2006.11239) as a denoiser D(x, σ, c), frozen.

Noise levels, and D of what the U-Net predicts: `denoisers.ready_made`; images in [−1, 1]. A folder is a pipeline's
(DDPMPipeline, DDIMPipeline: `unet/` and `scheduler/`, or the files of both in one folder), or of a U-Net alone
(`UNet2DModel.save_pretrained`), which is taken to predict ε at the levels of DDPM: T = 1000, β from 0.0001 to 0.02.
"""

from pathlib import Path
from typing import Annotated, Any

from torch import Tensor

from flowdiff.denoisers.base import UNPERTURBED, Perturbation, Sigma
from flowdiff.denoisers.diffusers_unets import import_class
from flowdiff.denoisers.ready_made import Folder, ReadyMade
from flowdiff.errors import ConfigError, FlowdiffError
from flowdiff.options import OUTSIDE, checked

DDPM = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02, "num_train_timesteps": 1000}


class PretrainedUNet2D(ReadyMade):
    """D of the UNet2DModel in a folder.

    With an embedding of K classes it is told the class, with one of K + 1 the last is the null class; without one it is
    unconditional, whatever classes the data have.

    Args:
        shape: of an image, (C, H, W).
        num_classes: K of the data, 0 for none.
        path: the folder. Only safetensors are read.

    Raises:
        ConfigError: there is none, something in it is missing or not to be read, or it is no U-Net for such data.
    """

    frozen = (
        "denoiser=unet_diffusers_pretrained: frozen, there is nothing to train; it is measured beside a checkpoint by "
        "python -m flowdiff.evaluate ckpt_path=… denoiser=unet_diffusers_pretrained denoiser.path=…"
    )

    @checked
    def __init__(self, shape: tuple[int, ...], num_classes: int, path: Annotated[str | None, OUTSIDE] = None) -> None:
        folder = UNetFolder(path)
        config = folder.unet_config(tuple(shape), num_classes)
        self.num_embeds = int(config.get("num_class_embeds") or 0)
        super().__init__(shape, num_classes if self.num_embeds else 0, *folder.noise_levels())
        self.unet = folder.unet()
        self.eval().requires_grad_(False)

    def denoise(
        self, x: Tensor, sigma: Sigma, labels: Tensor | None = None, perturbation: Perturbation = UNPERTURBED
    ) -> Tensor:
        classes = self._classes(x, labels, perturbation.drop)
        if self.num_embeds == self.num_classes and labels is None and self.num_embeds:
            raise FlowdiffError("the U-Net was trained without a null class: it has to be told the class")
        told = classes if self.num_embeds else None
        return self.estimate(x, sigma, lambda scaled, t: self.unet(scaled, t, told, return_dict=False)[0])


class UNetFolder(Folder):
    """The U-Net and the scheduler in a folder of this machine.

    Args:
        path: as of `PretrainedUNet2D`.
    """

    def __init__(self, path: str | None) -> None:
        what = "the folder of a UNet2DModel that diffusers has written, or of a pipeline with one"
        if not path:
            raise ConfigError("denoiser.path", "null", f"must be {what}")
        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise ConfigError("denoiser.path", path, f"there is no such folder; give {what}")
        super().__init__(path, str(folder))
        self.part = "unet" if (folder / "unet").is_dir() else None
        places = {"scheduler": folder / "scheduler", "": folder}
        self.schedule = next(
            (name for name, place in places.items() if (place / "scheduler_config.json").exists()), None
        )

    def unet_config(self, shape: tuple[int, ...], num_classes: int) -> dict[str, Any]:
        """The U-Net's configuration, if it is one for such data."""
        with self.explain_reading("unet"):
            config = import_class("UNet2DModel").load_config(self.path, subfolder=self.part)
        kind = config.get("_class_name")
        if kind != "UNet2DModel":
            raise self.refuse(f"its unet is a {kind}, not a UNet2DModel")
        size = config.get("sample_size")
        sides = tuple(size) if isinstance(size, list | tuple) else (size, size) if size else tuple(shape[1:])
        wanted = (config.get("in_channels"), *sides)
        if len(shape) != 3 or wanted != shape or config.get("out_channels") != shape[0]:
            taken = "×".join(map(str, wanted))
            raise self.refuse(
                f"its unet takes {taken} and gives {config.get('out_channels')} channels, the data are "
                f"{'×'.join(map(str, shape))}"
            )
        if config.get("time_embedding_type", "positional") != "positional" or config.get("class_embed_type"):
            raise self.refuse("its unet takes no numbers of steps, or other classes than numbers")
        if config.get("num_class_embeds") not in (None, num_classes, num_classes + 1):
            raise self.refuse(f"its unet has {config['num_class_embeds']} classes, the data have {num_classes}")
        return config

    def noise_levels(self) -> tuple[str, Tensor]:
        """The prediction_type, and log σ_t (T,), ascending: the scheduler's, or DDPM's without one."""
        return self.levels(DDPM) if self.schedule is None else self.scheduler(self.schedule or None)

    def unet(self) -> Any:
        """The U-Net with its weights."""
        with self.explain_reading("unet"):
            network = import_class("UNet2DModel")
            return network.from_pretrained(self.path, subfolder=self.part, use_safetensors=True, local_files_only=True)
