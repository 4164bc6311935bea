r"""Training an autoencoder for `data.first_stage`: reconstruction + KL.

    loss = mean over pixels of (x − x̂)²/(2s²)  +  kl_weight · KL(q(z|x) ‖ N(0, I)) / pixels,
    z = μ(x) + ς(x)·ε,    x̂ = decoder(z),    KL = ½ Σ (μ² + ς² − 1 − log ς²)

(Kingma & Welling 2013, arXiv:1312.6114), s the standard deviation of what a pixel's error may be: with kl_weight 1 this
is the negative evidence lower bound per pixel, up to a constant. The network is diffusers' AutoencoderKL, written as
its folder at the end, with the scale and shift that bring the latents of the training data to mean 0 and variance 1.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from flowdiff.data.base import ImageData
from flowdiff.data.first_stage import AutoencoderKL
from flowdiff.errors import ConfigError, FlowdiffError, how_to_install
from flowdiff.evaluation import pictures
from flowdiff.evaluation.measurement import print_table
from flowdiff.files import write_json
from flowdiff.metrics.base import Result
from flowdiff.metrics.extractors.extractor import Extractor
from flowdiff.metrics.frechet import FrechetDistance, frechet_distance, moments
from flowdiff.model import checkpoint, safe_construction
from flowdiff.model.requests import spell_out
from flowdiff.options import Length, Positive, Range, Size, checked
from flowdiff.quantities import Quantity, resolve
from flowdiff.runs.words import override
from flowdiff.training.optimisation import Optimised
from flowdiff.training.request import TrainRequest

FOLDER = "autoencoder"  # in the run's folder
MEASURED = 2000  # images that scale and shift, and the errors, are measured on
QUANTITIES = (
    Quantity("reconstruction_rmse", better="lower", plotted="reconstruction_rmse"),
    Quantity("kl", "nats/image"),  # neither way is better: less of it costs reconstruction
    *FrechetDistance.quantities,
)


class Autoencoder(Optimised):
    """Training of one AutoencoderKL.

    Args:
        data: the images that it is for.
        request, entry: as of every training.
        latent_channels: c, of the latents.
        block_out_channels: channels at each resolution; height and width are halved between them.
        layers_per_block, norm_num_groups: as in diffusers.
        attention: whether the middle block attends.
        kl_weight: of the KL term.
        deviation: s.

    Raises:
        ConfigError: images that can't be halved so often, or data that are no images.
    """

    @checked
    def __init__(
        self,
        data: ImageData,
        request: TrainRequest,
        entry: dict[str, Any],
        latent_channels: Annotated[int, Range(1, 1024)] = 4,
        block_out_channels: Annotated[Sequence[Size], Length(1, 16)] = (16, 32, 32),
        layers_per_block: Annotated[int, Range(1, 32)] = 1,
        norm_num_groups: Size = 8,
        attention: bool = True,
        kl_weight: Positive = 1.0,
        deviation: Positive = 0.1,
    ) -> None:
        super().__init__(request, entry)
        try:
            from diffusers import AutoencoderKL as Network
        except ImportError as error:
            raise FlowdiffError(f"an autoencoder needs diffusers: {how_to_install('latent')}") from error
        if data.levels is None:
            raise ConfigError("dataset", data.name, "an autoencoder needs images")
        halvings = len(block_out_channels) - 1
        if any(size % 2**halvings for size in data.shape[1:]):
            size = "×".join(map(str, data.shape[1:]))
            allowed = f"images of {size} can't be halved {halvings} times: give fewer"
            raise ConfigError("autoencoder.block_out_channels", list(block_out_channels), allowed)
        if any(channels % norm_num_groups for channels in block_out_channels):
            allowed = f"each must be divisible by autoencoder.norm_num_groups={norm_num_groups}"
            raise ConfigError("autoencoder.block_out_channels", list(block_out_channels), allowed)
        self.kl_weight = kl_weight
        self.deviation = deviation
        blocks = len(block_out_channels)
        self.network: Any = Network(
            in_channels=data.shape[0],
            out_channels=data.shape[0],
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            latent_channels=latent_channels,
            norm_num_groups=norm_num_groups,
            sample_size=data.shape[-1],
            mid_block_add_attention=attention,
            scaling_factor=1.0,
        )

    def terms(self, x: Tensor) -> dict[str, Tensor]:
        """Images (B, C, H, W) to "loss", "reconstruction" (the squared error) and "kl" (nats a pixel), (B,) each."""
        posterior = self.network.encode(x).latent_dist
        mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        error = (self.network.decode(z).sample - x).square().flatten(1).mean(1)
        nats = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1)
        kl = nats / math.prod(x.shape[1:])
        loss = error / (2 * self.deviation**2) + self.kl_weight * kl
        return {"loss": loss, "reconstruction": error.detach(), "kl": kl.detach()}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Any]:
        self.seed_step()
        terms = self.terms(self.data.to_centres(batch[0]))
        loss = self.need_finite(terms["loss"].mean())
        return {"loss": loss, "terms": {name: term.detach() for name, term in terms.items()}}

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.seed_validation(batch_idx)
        self.log_validation(self.validation_terms(batch))

    def validation_terms(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return self.terms(self.data.to_centres(batch[0]))

    def picture(self) -> Tensor:
        """Ten validation images in each row, and their reconstructions below, (3, H', W') uint8."""
        x = self.data.to_centres(self.data.images("val")[0][:50]).to(self.device)
        with torch.no_grad():
            y = self.network.decode(self.network.encode(x).latent_dist.mode()).sample
        return stack_vertically(self.data, x.cpu(), y.cpu())


def stack_vertically(data: ImageData, x: Tensor, y: Tensor) -> Tensor:
    """Rows of ten of x (N, C, H, W), each with a row of y below it."""
    pairs = [part for rows in zip(x.split(10), y.split(10), strict=True) for part in rows]
    return pictures.image_grid(data.to_uint8(torch.cat(pairs)), columns=10)


def build(request: TrainRequest, data: ImageData, entry: dict[str, Any]) -> Autoencoder:
    """The training that a request describes."""
    make: Any = safe_construction.build("autoencoder", spell_out(request.autoencoder))
    training = make(data, request, entry)
    assert isinstance(training, Autoencoder)
    return training


def report(path: Path, request: TrainRequest, run_dir: Path, data: ImageData) -> dict[str, dict[str, Any]]:
    """`finish`, and what it has found as a table."""
    folder, entries = finish(path, request, run_dir, data)
    print_table(entries, f"{data.name}: autoencoder, ema weights of {path.name}")
    print(f"metrics:         {run_dir / 'metrics.json'}")
    print(f"reconstructions: {run_dir / 'reconstructions.png'}")
    print(f"autoencoder:     {folder}   (experiment=mnist_latent {override('first_stage.path', folder)})")
    return entries


def finish(path: Path, request: TrainRequest, run_dir: Path, data: ImageData) -> tuple[Path, dict[str, dict[str, Any]]]:
    """Write the averaged weights of a checkpoint as an autoencoder of diffusers, and measure it on the test split.

    Returns:
        `RUN/autoencoder` and what is in metrics.json: `reconstruction_rmse` (pixels are in [-1, 1]),
        `kl` (nats an image), and with a small extractor the Fréchet distance of the reconstructions to the
        training split, `fd_<extractor>`, beside that of the images themselves: what no model of the latents betters.
    """
    content = checkpoint.read(path)
    model = build(request, data, content["flowdiff"])
    model.load_state_dict(content["state_dict"])
    folder = run_dir / FOLDER
    model.network.eval().save_pretrained(folder)
    first_stage = AutoencoderKL(str(folder))
    x = data.to_centres(pick_measured(data, "train"))
    found = first_stage.encode(x)
    mean, variance = found[:, 0].mean(), found[:, 0].var() + found[:, 1].square().mean()
    model.network.register_to_config(scaling_factor=float(variance.rsqrt()), shift_factor=float(mean))
    model.network.save_pretrained(folder)
    return folder, measure(AutoencoderKL(str(folder)), data, run_dir)


def columns(data: ImageData) -> list[str]:
    """Those of them that are columns of TensorBoard's HParams."""
    return ["reconstruction_rmse", *([f"fd_{data.extractor}"] if data.extractor is not None else [])]


def pick_measured(data: ImageData, split: str) -> Tensor:
    """Levels of as many images of a split as are measured."""
    k, _ = data.images(split)
    return k[torch.randperm(len(k), generator=torch.Generator().manual_seed(0))[:MEASURED]]


def measure(first_stage: AutoencoderKL, data: ImageData, run_dir: Path) -> dict[str, dict[str, Any]]:
    """See `finish`. The latents are the posterior's means."""
    k = pick_measured(data, "test")
    x = data.to_centres(k)
    encoded = first_stage.encode(x)
    y = first_stage.decode(encoded[:, 0])
    mean, std = (part / first_stage.scale.cpu() for part in encoded.unbind(1))
    mean = mean + first_stage.shift.cpu()
    nats = 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).flatten(1).sum(1)
    conditions = {"dataset": data.name, "split": "test", "seed": 0, "weights": "ema"}
    results = {
        "reconstruction_rmse": Result((x - y).square().mean().sqrt().item(), len(k), conditions),
        "kl": Result(nats.mean().item(), len(k), conditions),
    }
    if data.extractor is not None:
        extractor = Extractor(data.extractor)
        reference = moments(extractor.features(data.levels_to_uint8(data.images("train")[0])))
        own = conditions | {"extractor": extractor.name, "reference": "train"}
        for key, images in (("", data.to_uint8(y)), ("/real", data.levels_to_uint8(k))):
            distance = frechet_distance(moments(extractor.features(images)), reference)
            results[f"fd_{extractor.name}{key}"] = Result(distance, len(k), own)
    known = resolve(QUANTITIES, list(results))
    entries = {name: replace(result, quantity=known[name]).to_json() for name, result in results.items()}
    write_json(run_dir / "metrics.json", entries, allow_nan=False)
    pictures.save_png(stack_vertically(data, x[:50], y[:50]), run_dir / "reconstructions.png")
    return entries
