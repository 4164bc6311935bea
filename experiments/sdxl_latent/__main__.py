"""Which flows fit SDXL's latents, and how long a step takes.   python -m experiments.sdxl_latent

Each flow of conf/flow, with the sizes of its YAML, takes two training steps (the second one is timed) of batches of
latents 4×64×64 (images of 512×512) and 4×128×128 (of 1024×1024), each in a process of its own, whose peak resident
memory is read. The latents are made by an autoencoder of SDXL's shape with random weights, whose time is taken too.
"""

import argparse
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.common.configurations import flow_names, plain_config
from flowdiff.data.first_stage import AutoencoderKL
from flowdiff.data.statistics import DataStatistics
from flowdiff.denoisers.base import Denoiser
from flowdiff.denoisers.score_flow import ScoreFlow
from flowdiff.evaluation.tables import to_csv, to_markdown
from flowdiff.files import write_text
from flowdiff.model import checkpoint
from flowdiff.objectives.losses import Likelihood, Mixture

LOSSES = {"likelihood": Likelihood, "mixture": Mixture}
ADDRESS_SPACE = 18 << 30
COLUMNS = ["latents", "flow", "loss", "parameters", "seconds a step", "GB", "note"]
#: stabilityai/stable-diffusion-xl-base-1.0, vae/config.json
SDXL_AUTOENCODER: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
}


def model(flow: str, shape: tuple[int, ...]) -> Denoiser:
    """The denoiser of `experiment=sdxl_latent flow=…`, unconditional, at its initialisation."""
    config = plain_config([f"flow={flow}", "precondition=standardized", "run_dir=none"])
    found = checkpoint.build_denoiser(config, shape, 0)
    assert isinstance(found, Denoiser)
    return found


def gigabytes() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def step(flow: str, side: int, loss: str, batch_size: int) -> dict[str, Any]:
    """One row of the table, measured in this process."""
    shape = (4, side, side)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))  # an error here, not for the whole machine
    torch.manual_seed(0)
    x0 = 0.9 * torch.randn(max(batch_size, 2), *shape)
    denoiser = model(flow, shape)
    assert isinstance(denoiser, ScoreFlow)
    denoiser.fit(DataStatistics.from_data(x0, None, 0))
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-4)
    seconds = math.nan
    for _ in range(2):
        start = time.perf_counter()
        sigma = torch.full((batch_size,), 0.5)
        terms = LOSSES[loss]()(denoiser, x0[:batch_size], None, sigma, torch.randn(batch_size, *shape))
        optimizer.zero_grad()
        terms["loss"].mean().backward()
        optimizer.step()
        seconds = time.perf_counter() - start
    count = sum(p.numel() for p in denoiser.parameters())
    return {"parameters": f"{count:,}", "seconds a step": f"{seconds:.1f}", "GB": f"{gigabytes():.1f}", "note": ""}


def row(flow: str, side: int, loss: str, batch_size: int, limit: float) -> dict[str, Any]:
    """The same in a process of its own; a refusal, or a process that takes too long, is a note."""
    facts = {"latents": f"4×{side}×{side}", "flow": flow, "loss": loss}
    words = ["--step", flow, str(side), loss, "--batch-size", str(batch_size)]
    command = [sys.executable, "-m", "experiments.sdxl_latent", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return facts | {"note": f"more than {limit:.0f} s for two steps"}
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        refusal = said.partition("ConfigError(")[2].strip("')")
        if "allocate" in done.stderr or "MemoryError" in done.stderr:
            return facts | {"note": f"more than {ADDRESS_SPACE >> 30} GB of memory"}
        return facts | {"note": f"refused: {refusal}" if refusal else said}
    return facts | dict(zip(COLUMNS[3:], done.stdout.strip().split("\t"), strict=False))


def autoencoder(size: int) -> tuple[float, float, Tensor]:
    """Seconds to encode and to decode one image of size×size on this machine, and the moments of its latents."""
    from diffusers import AutoencoderKL as Network

    with tempfile.TemporaryDirectory() as folder:
        network: Any = Network(**SDXL_AUTOENCODER)
        network.save_pretrained(folder)
        first_stage = AutoencoderKL(folder)
    x = torch.rand(1, 3, size, size) * 2 - 1
    start = time.perf_counter()
    moments = first_stage.encode(x)
    between = time.perf_counter()
    image = first_stage.decode(moments[:, 0])
    assert image.shape == x.shape
    return between - start, time.perf_counter() - between, moments


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("experiments/sdxl_latent"))
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--flows", nargs="+", default=flow_names())
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--limit", type=float, default=180, help="seconds for a flow's two steps")
    parser.add_argument("--step", nargs=3, metavar=("FLOW", "SIDE", "LOSS"), help=argparse.SUPPRESS)
    parser.add_argument("--autoencoder", type=int, metavar="SIZE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        flow, side, loss = args.step
        print("\t".join(step(flow, int(side), loss, args.batch_size).values()))
        return
    if args.autoencoder:
        encoding, decoding, moments = autoencoder(args.autoencoder)
        shape = "×".join(map(str, moments.shape[2:]))
        times = f"{encoding:.1f} s to encode, {decoding:.1f} s to decode, {gigabytes():.1f} GB"
        print(f"autoencoder of SDXL's shape, {args.autoencoder}×{args.autoencoder} → {shape}: {times}")
        return
    rows = []
    for side in args.sides:
        for flow in args.flows:
            for loss in LOSSES:
                rows.append(row(flow, side, loss, args.batch_size, args.limit))
                print(rows[-1], flush=True)
    write(args.output, rows)


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    """steps.csv and steps.md."""
    cells = [[row.get(name, "") for name in COLUMNS] for row in rows]
    write_text(folder / "steps.csv", to_csv(COLUMNS, cells))
    write_text(folder / "steps.md", to_markdown(COLUMNS, cells))


if __name__ == "__main__":
    main()
