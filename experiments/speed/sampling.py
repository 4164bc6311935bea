"""What sampling costs beyond the denoiser, here and in k-diffusion, on digits by 50 steps.

The same denoiser is called by both; a draw's seconds less those of as many calls of it, measured in the same round, are
the overhead, in milliseconds. `walk` is a sampler alone with noise of the whole batch, as k-diffusion's functions are;
`draw` is what `sample` does: noise of each sample's own seed, tiles, D held to [−1, 1], counts. Of `tiny`, a denoiser
of three operations, the ratio of overheads is told. Beside the calls of `default`, the default's flow, overheads are
lost in the noise: of it a draw's seconds over those of its calls are told.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from experiments.common.columns import Column, Row
from experiments.common.k_diffusion import load_sampling
from experiments.common.spread import Spread
from experiments.speed.models import build_model
from experiments.speed.steps import spread
from experiments.speed.timing import Work, time_in_turn
from flowdiff.samplers import Ancestral, Dpmpp2m, Euler, Heun, Karras, Sampler
from flowdiff.samplers.batched import BatchedSampler, seeds_from

STEPS, SAMPLES = 50, 128  # a multiple of the tile, to which batches are filled up
CPU = torch.device("cpu")
#: Ours and the name of k-diffusion's function.
SAMPLERS: dict[str, tuple[Sampler, str]] = {
    "euler": (Euler(STEPS), "sample_euler"),
    "heun": (Heun(STEPS), "sample_heun"),
    "dpmpp_2m": (Dpmpp2m(STEPS), "sample_dpmpp_2m"),
    "ancestral": (Ancestral(STEPS), "sample_euler_ancestral"),
}
COLUMNS = (
    Column("denoiser", "denoiser", lambda row: row["denoiser"]),
    Column("sampler", "sampler", lambda row: row["sampler"]),
    Column("nfe", "NFE", lambda row: row["nfe"]),
    spread("calls", "ms of D"),
    spread("walk", "ms beside it, walk"),
    spread("draw", "draw"),
    spread("k_diffusion", "k-diffusion"),
    Column("ratio", "walk / k-diffusion", lambda row: row["ratio"], "{:.2f}"),
    Column("share", "draw / D", lambda row: row["share"], "{:.2f}"),
)


class Tiny(nn.Module):
    """D of the standard normal: x/(1 + σ²)."""

    shape, num_classes = (1, 8, 8), 10

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return x / (self.one + sigma.square()).view(-1, 1, 1, 1)


def measure(denoisers: dict[str, Any], rounds: int, say: Callable[[Row], None]) -> list[Row]:
    """A row for each denoiser and sampler; `say` is given each at once."""
    rows = []
    for name, denoiser in denoisers.items():
        for sampler in SAMPLERS:
            is_tiny = isinstance(denoiser, Tiny)
            found = overheads(denoiser.eval(), sampler, rounds if is_tiny else max(1, rounds // 2))
            row, share = (
                {"denoiser": name, "sampler": sampler} | found,
                1 + found["draw"].median / found["calls"].median,
            )
            row["ratio"] = row["walk"].median / row["k_diffusion"].median if is_tiny else None
            rows.append(row | {"share": None if is_tiny else share})
            say(rows[-1])
    return rows


def build_denoisers() -> dict[str, Any]:
    """Those of the table."""
    return {"tiny": Tiny(), "default": build_model("coupling", "mixture", "digits", CPU).denoiser}


@torch.no_grad()
def overheads(denoiser: Any, sampler_name: str, rounds: int) -> dict[str, Any]:
    """NFE, and milliseconds of its calls and beyond them."""
    sampler, function = SAMPLERS[sampler_name]
    schedule = Karras(sigma_min=0.002, sigma_max=80.0)
    labels, seeds = torch.arange(SAMPLES) % 10, seeds_from(0, SAMPLES)
    sigmas, shape = sampler.sigmas(schedule), (SAMPLES, *denoiser.shape)
    batched = BatchedSampler(denoiser, sampler, schedule, clip=(-1.0, 1.0), tile=SAMPLES)
    theirs: Any = getattr(load_sampling(), function)
    nfe = int(batched.draw(labels, seeds, quiet=True).nfe)
    x, level, levels = torch.randn(shape), torch.ones(SAMPLES), sigmas.float()

    def call() -> None:
        for _ in range(nfe):
            denoiser(x, level, labels)

    works: dict[str, Work] = {
        "calls": call,
        "walk": lambda: sampler(denoiser, lambda: torch.randn(shape), sigmas, labels),
        "draw": lambda: batched.draw(labels, seeds, quiet=True),
        "k_diffusion": lambda: theirs(denoiser, 80 * torch.randn(shape), levels, {"labels": labels}, disable=True),
    }
    found = time_in_turn(works, rounds, CPU)
    beyond = {
        name: Spread.of([1e3 * (a - b) for a, b in zip(found[name], found["calls"], strict=True)])
        for name in ("walk", "draw", "k_diffusion")
    }
    return {"nfe": nfe, "calls": Spread.of([1e3 * each for each in found["calls"]]), **beyond}
