"""What is shown during training: samples from fixed noise, the denoising of one fixed batch, chosen metrics.

They come at each validation, in `on_validation_epoch_end`, when the model holds the averaged weights; so
they stand before `training.callbacks.average.EMA` in the list of callbacks.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from flowdiff.evaluation import pictures
from flowdiff.model.construction import from_config
from flowdiff.options import Length, Range, Sigma, checked
from flowdiff.samplers.batched import seeds_from
from flowdiff.training.autoencoder import Autoencoder
from flowdiff.training.board import Board
from flowdiff.training.diffusion import Diffusion
from flowdiff.training.optimisation import Optimised


class Picture(Callback):
    """A picture at each validation, of the averaged weights: in `<run>/<folder>/` and on the loggers' boards."""

    folder = "pictures"

    def picture(self, module: Any) -> Tensor | None:
        """(C, H, W) uint8 of a training, or None where there is nothing to show."""
        raise NotImplementedError

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        picture = self.picture(pl_module)
        if picture is None:
            return
        assert isinstance(pl_module, Optimised)
        file = Path(pl_module.request.run_dir, self.folder, f"step_{trainer.global_step:07d}.png")
        pictures.save_png(picture, file)
        for logger in trainer.loggers:
            if isinstance(logger, Board):
                logger.show(f"images/{self.folder}", picture, trainer.global_step)


class SampleGrid(Picture):
    """Samples from the same noise and for the same classes each time, a row a class. Points in the plane are
    drawn over the density.

    Args:
        rows, columns: of the grid; points: 2,000, whatever these say.
    """

    folder = "samples"

    @checked
    def __init__(self, rows: Annotated[int, Range(1, 100)] = 10, columns: Annotated[int, Range(1, 100)] = 10) -> None:
        self.rows, self.columns = rows, columns

    def picture(self, module: Diffusion) -> Tensor | None:
        data, denoiser = module.data, module.denoiser
        images = data.has_images
        n = self.rows * self.columns if images else 2000
        sampler = from_config(denoiser, module.entry["config"], images=data.levels is not None)
        classes = denoiser.num_classes
        labels = (torch.arange(n) // (self.columns if images else 1)) % classes if classes else None
        x = sampler.draw(labels, seeds_from(0, n), what="sample grid").x
        if images:
            return pictures.image_grid(data.to_uint8(x), columns=self.columns)
        log_prob = None
        if denoiser.normalized:
            sigma = module.request.sigma_min
            device = next(denoiser.parameters()).device
            log_prob = lambda p: denoiser.log_prob(p.to(device), sigma)  # type: ignore[operator]  # noqa: E731
        return pictures.density_scatter(x, log_prob, title=f"step {module.global_step}", labels=labels)


class DenoisingGrid(Picture):
    """One fixed batch of validation images, at several σ: x0, then x0 + σε and D beside it. Images only.

    Args:
        columns: how many images.
        sigmas: noise levels.
    """

    folder = "denoising"

    @checked
    def __init__(
        self,
        columns: Annotated[int, Range(1, 100)] = 10,
        sigmas: Annotated[Sequence[Sigma], Length(1, 100)] = (0.1, 0.3, 1.0, 3.0, 10.0),
    ) -> None:
        self.columns, self.sigmas = columns, list(sigmas)

    @torch.no_grad()
    def picture(self, module: Diffusion) -> Tensor | None:
        data, denoiser = module.data, module.denoiser
        if not data.has_images:
            return None
        k, labels = data.encoded("val")
        device = next(denoiser.parameters()).device
        x0 = data.to_centres(k[: self.columns]).to(device)
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)).to(device)
        own = labels[: self.columns].to(device) if denoiser.num_classes else None
        return pictures.denoising_strip(denoiser.denoise, x0, own, self.sigmas, noise, data.to_uint8)


class Reconstructions(Picture):
    """Validation images and, below each row of ten, what an autoencoder in training makes of them. Of a denoiser's
    training there is none.
    """

    folder = "reconstructions"

    def picture(self, module: Any) -> Tensor | None:
        return module.picture() if isinstance(module, Autoencoder) else None
