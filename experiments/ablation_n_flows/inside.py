r"""Why the guide's linear flow gains so little by more steps.   python -m experiments.ablation_n_flows.inside SWEEP

Looks into the trained flows of a sweep over flow.n_flows. A step is x ↦ W x, FiLM by (σ, c), then the gated activation
y = x + g κ(σ) (a(x) − x). Where the gates g stay near 0 the steps compose to one affine map for each (σ, c), however
many there are. With J(u) = ∂z/∂u the Jacobian of the flow at noised test images of one class, J̄ its mean, it measures

    gate            g, mean and largest over the coordinates of each step
    bend            √(E‖J − J̄‖² / E‖J‖²): 0 for an affine map, whatever its number of steps
    condition       σ_max(J̄) / σ_min(J̄)
    rank            ‖J̄ − I‖_F² / ‖J̄ − I‖₂², the stable rank of what the flow changes in the mean
    turn            √(E_c‖R_c − R̄‖² / E_c‖R_c‖²) with R_c the rows of J̄ of class c, each divided by its length: what
                    the class does to the map beyond scaling its outputs. One step W, FiLM is z = D(σ, c) W u + b(σ, c):
                    0 but for the bend. With more steps there is a D between each two W.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowdiff.data.digits import Digits
from flowdiff.denoisers.score_flow import ScoreFlow
from flowdiff.errors import FlowdiffError
from flowdiff.evaluation.tables import to_csv, to_markdown
from flowdiff.files import write_text
from flowdiff.flows.gated import GatedActivation
from flowdiff.model import api
from flowdiff.runs.job_folders import collect

SIGMAS = (0.05, 0.2, 0.5, 1.0)
HEADER = ("n_flows", "lr", "seed", "bits_per_dim", "gates, mean by step", "gates, largest by step")
BY_SIGMA = ("bend", "condition", "rank", "turn")


def gates(flow: torch.nn.Module) -> list[Tensor]:
    """The gates of each step, (d,), in [0, 1]."""
    return [m.gate.detach().clamp(0, 1).flatten() for m in flow.modules() if isinstance(m, GatedActivation)]


def jacobians(denoiser: ScoreFlow, x: Tensor, sigma: float, label: int) -> Tensor:
    """J = ∂z/∂u at each of the noised images x (B, *shape) of one class: (B, d, d)."""
    levels, classes = torch.full((len(x),), sigma), torch.full((len(x),), label)
    context, _ = denoiser._context(levels, classes)
    u, _ = denoiser.precondition(x.flatten(1), levels, classes)
    rows = []
    u = u.detach().reshape(x.shape).requires_grad_()
    z = denoiser.flow(u, context)[0].flatten(1)
    for i in range(z.shape[1]):
        (row,) = torch.autograd.grad(z[:, i].sum(), u, retain_graph=True)
        rows.append(row.flatten(1))
    return torch.stack(rows, 1)


def bend_condition_rank(jacobian: Tensor) -> tuple[float, float, float]:
    """See the module; (B, d, d) of one class."""
    mean = jacobian.mean(0)
    bend = ((jacobian - mean).square().sum((1, 2)).mean() / jacobian.square().sum((1, 2)).mean()).sqrt()
    values = torch.linalg.svdvals(mean)
    change = torch.linalg.svdvals(mean - torch.eye(len(mean)))
    rank = change.square().sum() / change[0].square().clamp(min=1e-20)
    return float(bend), float(values[0] / values[-1]), float(rank)


def turn(means: Tensor) -> float:
    """See the module; J̄ of each class, (K, d, d)."""
    rows = means / means.norm(dim=2, keepdim=True)
    return float(((rows - rows.mean(0)).square().mean() / rows.square().mean()).sqrt())


def inside(checkpoint: Path, x0: Tensor, labels: Tensor) -> tuple[list[Tensor], dict[str, float]]:
    """The gates of a model, and by σ bend, condition and rank, means over the classes, and turn."""
    denoiser = api.load(checkpoint).denoiser
    assert isinstance(denoiser, ScoreFlow)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    found: dict[str, float] = {}
    for sigma in SIGMAS:
        x = x0 + sigma * noise
        each = [jacobians(denoiser, x[labels == c], sigma, int(c)) for c in labels.unique().tolist()]
        means = torch.tensor([bend_condition_rank(jacobian) for jacobian in each]).mean(0).tolist()
        values = [*means, turn(torch.stack([jacobian.mean(0) for jacobian in each]))]
        found |= {f"{name} σ={sigma:g}": value for name, value in zip(BY_SIGMA, values, strict=True)}
    return gates(denoiser.flow), found


def main(words: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.ablation_n_flows.inside", description=__doc__)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("inside.csv"), help="CSV; a .md is written beside it")
    given = parser.parse_args(words)
    data = Digits()
    levels, labels = data.images("test")
    x0 = data.to_model(levels)
    header: list[str] = list(HEADER)
    table: list[list[Any]] = []
    try:
        for job in collect(given.sweep):
            checkpoint = job.folder / "checkpoints" / "best.ckpt"
            if job.status != "done" or not checkpoint.is_file():
                continue
            opened, measured = inside(checkpoint, x0, labels)
            header = [*HEADER, *measured]
            settings = [job.overrides.get(key) for key in ("flow.n_flows", "lr", "seed")]
            shown = [" ".join(f"{float(of(gate)):.2f}" for gate in opened) for of in (torch.mean, torch.amax)]
            table.append([*settings, job.metrics.get("bits_per_dim"), *shown, *measured.values()])
    except FlowdiffError as error:
        print(error, file=sys.stderr)
        return 1
    text = to_markdown(header, table)
    write_text(given.output, to_csv(header, table))
    write_text(given.output.with_suffix(".md"), text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
