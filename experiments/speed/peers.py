"""Our flows beside those of other libraries, at equal width, depth, number of transforms, and batch.

Affine couplings, rational-quadratic couplings (8 bins), and masked autoregressive affine maps, on digits as vectors of
64, with the settings of conf/flow. Every network has as many linear layers as ours (`2 hidden layers`: zuko's with
fewer, as its documentation has them). Ours are conditioned on σ and the class and act behind a whitening, theirs are
not; `ours, the flow alone` has neither whitening, nor embeddings, nor activations between the couplings (what they add
to a coupling stays).

    ms a step       of −log p, its gradients and AdamW
    ms a score      the gradient of log p by x; theirs by `autograd.grad`, ours by `denoiser.score`
    score / step    the one over the other
    ms, sampling    of as many samples as the batch has
    steps/s over ours   our seconds of a step over these, in the same round
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiments.common.columns import Column, Row
from experiments.speed.models import Model, build_model
from experiments.speed.steps import spread
from experiments.speed.timing import Work, milliseconds, ratio, time_in_turn
from flowdiff.flows.context import Context

DIM, BINS, BOUND = 64, 8, 5.0
OURS = "ours"
COLUMNS = (
    Column("kind", "flow", lambda row: row["kind"]),
    Column("name", "library", lambda row: row["name"]),
    Column("parameters", "parameters", lambda row: row["parameters"], "{:,}"),
    spread("step", "ms a step"),
    spread("score", "ms a score"),
    Column("score_of_step", "score / step", lambda row: row["score_of_step"], "{:.2f}"),
    spread("sample", "ms, sampling"),
    spread("ratio", "steps/s over ours", "{:.2f}"),
)
Density = Callable[[Tensor], Tensor]


@dataclass
class Contender:
    """A density of x (B, DIM): what has its parameters, its log p, and how many samples are drawn of it."""

    module: nn.Module
    log_prob: Density
    sample: Work

    def works(self, x: Tensor) -> dict[str, Work]:
        """What is timed of it."""
        optimizer = torch.optim.AdamW(self.module.parameters(), fused=True)

        def step() -> None:
            (-self.log_prob(x).mean()).backward()
            optimizer.step()
            optimizer.zero_grad()

        def score() -> Tensor:
            points = x.detach().requires_grad_()
            return torch.autograd.grad(self.log_prob(points).sum(), points)[0]

        return {"step": step, "score": score, "sample": torch.no_grad()(self.sample)}


@dataclass(frozen=True)
class Size:
    """Transforms, width of their networks, and linear layers in each of them."""

    transforms: int
    width: int
    linear: int

    @property
    def hidden(self) -> list[int]:
        """Widths of the hidden layers."""
        return [self.width] * (self.linear - 1)


def ours(model: Model) -> dict[str, Work]:
    """What is timed of a denoiser as it is."""
    x0, labels, sigma, eps = model.batch[:4]
    contender = Contender(
        model.denoiser,
        lambda x: model.denoiser.log_prob(x.view_as(x0), sigma, labels),
        lambda: model.denoiser.inverse(eps, sigma, labels),
    )
    return contender.works(model.noised) | {"score": model.score}


def alone(model: Model) -> Contender:
    """Its flow, in one context for all."""
    x0, _, sigma, eps = model.batch[:4]
    denoiser = model.denoiser
    context = Context(torch.zeros(len(x0), denoiser.embed.dim), denoiser.precondition.kappa(sigma).detach())

    def log_prob(x: Tensor) -> Tensor:
        z, change = denoiser.flow(x.view_as(x0), context)
        return change - 0.5 * z.flatten(1).square().sum(1)

    return Contender(denoiser.flow, log_prob, lambda: denoiser.flow.inverse(eps, context))


def of_zuko(flow: Any, n: int) -> Contender:
    """A flow of zuko."""
    return Contender(flow, lambda x: flow().log_prob(x), lambda: flow().sample((n,)))


def of_nflows(transforms: Sequence[nn.Module], n: int) -> Contender:
    """One of nflows, made of its transforms."""
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.transforms import CompositeTransform

    flow = Flow(CompositeTransform(transforms), StandardNormal([DIM]))
    return Contender(flow, flow.log_prob, lambda: flow.sample(n))


def of_normflows(steps: Sequence[nn.Module], n: int) -> Contender:
    """One of normflows, made of its flows."""
    from normflows import NormalizingFlow
    from normflows.distributions import DiagGaussian

    flow = NormalizingFlow(DiagGaussian(DIM, trainable=False), list(steps))
    return Contender(flow, flow.log_prob, lambda: flow.sample(n)[0])


def residual_net(inputs: int, outputs: int, size: Size) -> nn.Module:
    """nflows' residual network."""
    from nflows.nn.nets import ResidualNet

    return ResidualNet(inputs, outputs, size.width, num_blocks=(size.linear - 2) // 2)


def nflows_couplings(spline: bool, size: Size, n: int) -> Contender:
    """Its couplings with alternating masks."""
    from nflows import transforms
    from nflows.utils import create_alternating_binary_mask

    settings: dict[str, Any] = {}
    make: Any = transforms.AffineCouplingTransform
    if spline:
        make = transforms.PiecewiseRationalQuadraticCouplingTransform
        settings = {"num_bins": BINS, "tails": "linear", "tail_bound": BOUND}
    steps = [
        make(create_alternating_binary_mask(DIM, even=i % 2 == 0), lambda a, b: residual_net(a, b, size), **settings)
        for i in range(size.transforms)
    ]
    return of_nflows(steps, n)


def nflows_autoregressive(size: Size, n: int) -> Contender:
    """Its masked autoregressive maps, with the order reversed between them."""
    from nflows import transforms

    steps: list[nn.Module] = []
    for _ in range(size.transforms):
        made = transforms.MaskedAffineAutoregressiveTransform(DIM, size.width, num_blocks=(size.linear - 2) // 2)
        steps += [made, transforms.ReversePermutation(DIM)]
    return of_nflows(steps, n)


def normflows_affine(size: Size, n: int) -> Contender:
    """Its couplings with the coordinates swapped between them."""
    import normflows as nf

    steps: list[nn.Module] = []
    for _ in range(size.transforms):
        network = nf.nets.MLP([DIM // 2, *size.hidden, DIM])
        steps += [nf.flows.AffineCouplingBlock(network), nf.flows.Permute(DIM, mode="swap")]
    return of_normflows(steps, n)


def normflows_splines(size: Size, n: int) -> Contender:
    """Its rational-quadratic couplings with alternating masks."""
    import normflows as nf

    make, blocks = nf.flows.CoupledRationalQuadraticSpline, (size.linear - 2) // 2
    settings = {"num_bins": BINS, "tail_bound": BOUND}
    steps = [make(DIM, blocks, size.width, reverse_mask=i % 2 == 1, **settings) for i in range(size.transforms)]
    return of_normflows(steps, n)


def contenders(kind: str, n: int) -> dict[str, Contender]:
    """The peers of a flow of conf/flow, by name."""
    import zuko

    if kind == "coupling":
        size = Size(8, 128, 6)
        return {
            "zuko RealNVP": of_zuko(zuko.flows.RealNVP(DIM, transforms=8, hidden_features=size.hidden), n),
            "zuko RealNVP, 2 hidden layers": of_zuko(
                zuko.flows.RealNVP(DIM, transforms=8, hidden_features=[size.width] * 2), n
            ),
            "nflows": nflows_couplings(False, size, n),
            "normflows": normflows_affine(size, n),
        }
    if kind == "spline":
        size = Size(8, 128, 6)
        nsf: dict[str, Any] = {"transforms": 8, "bins": BINS, "passes": 2}
        return {
            "zuko NSF": of_zuko(zuko.flows.NSF(DIM, hidden_features=size.hidden, **nsf), n),
            "zuko NSF, 2 hidden layers": of_zuko(zuko.flows.NSF(DIM, hidden_features=[size.width] * 2, **nsf), n),
            "nflows RQ-NSF": nflows_couplings(True, size, n),
            "normflows RQ-NSF": normflows_splines(size, n),
        }
    size = Size(6, 256, 6)
    return {
        "zuko MAF": of_zuko(zuko.flows.MAF(DIM, transforms=6, hidden_features=size.hidden), n),
        "zuko MAF, 2 hidden layers": of_zuko(zuko.flows.MAF(DIM, transforms=6, hidden_features=[size.width] * 2), n),
        "nflows MAF": nflows_autoregressive(size, n),
    }


KINDS = ("coupling", "spline", "autoregressive")


def measure(kinds: Sequence[str], rounds: int, say: Callable[[Row], None]) -> list[Row]:
    """A row for each contender of each kind; `say` is given each at once."""
    cpu, rows = torch.device("cpu"), []
    for kind in kinds:
        model = build_model(kind, "likelihood", "digits", cpu)
        bare = build_model(kind, "likelihood", "digits", cpu, "activation=identity")
        x = model.noised.flatten(1)
        peers = contenders(kind, len(x))
        works = {OURS: ours(model), f"{OURS}, the flow alone": alone(bare).works(x)}
        works |= {name: contender.works(x) for name, contender in peers.items()}
        modules = {OURS: model.denoiser, f"{OURS}, the flow alone": bare.denoiser.flow}
        modules |= {name: contender.module for name, contender in peers.items()}
        found = time_in_turn(
            {f"{name}:{what}": work for name, each in works.items() for what, work in each.items()}, rounds, cpu
        )
        for name in works:
            step, score, sample = (found[f"{name}:{what}"] for what in ("step", "score", "sample"))
            row: Row = {"kind": kind, "name": name}
            row["parameters"] = sum(p.numel() for p in modules[name].parameters())
            row |= {"step": milliseconds(step), "score": milliseconds(score), "sample": milliseconds(sample)}
            row |= {"score_of_step": min(score) / min(step), "ratio": ratio(found[f"{OURS}:step"], step)}
            rows.append(row)
            say(row)
    return rows
