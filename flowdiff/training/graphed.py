r"""`trainer.cuda_graph`: the loss of a training step and its gradients as one CUDA graph.

    (denoiser, x0, labels, σ, ε, perturbation, progress)  →  mean loss, the terms, gradients of the weights

A flow's step is thousands of small kernels, and launching them takes longer than running them. Recorded once, they are
launched together (CUDA graphs: pytorch.org/docs/stable/notes/cuda.html#cuda-graphs). The first step warms up on a side
stream and records; every step copies its batch to where the recorded one lay, and replays. What is drawn at random
inside (dropout) comes from the device's generator, which the graph knows, as without a graph. The loss that a step
gives has the recorded gradients behind it: clipping, AdamW, the average of the weights, callbacks and checkpoints are
Lightning's own, and know nothing of it.

The recorded step is held to be right only if it gives what the step gives as it is written; if it doesn't, or can't be
recorded, or a batch has another shape, the step runs as it is written, and one line says so.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from flowdiff.denoisers.base import Denoiser
from flowdiff.errors import ConfigError, one_line
from flowdiff.training.compilation import Terms
from flowdiff.training.request import TrainRequest

WARM_UP = 3  # runs before the one that is recorded: libraries allocate and choose their kernels
TOLERANCE = 1e-3  # of the largest gradient: float32 sums in another order


class Outcome(NamedTuple):
    """What a step gives.

    Attributes:
        loss: its mean, ().
        terms: (B,) each, without a tape.
        gradients: of the loss by each weight, and by what of the batch has a tape (the shift that an augmentation
            learns); None: it has no part in it.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    gradients: Sequence[Tensor | None]


Function = Callable[[], Outcome]
Record = Callable[[Function], Function]
MeanLoss = Callable[..., tuple[Tensor, dict[str, Tensor]]]


def record_graph(function: Function) -> Function:
    """Warm a function up on a side stream and record it; what is returned replays it, and fills the same tensors."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # the device's own generator is registered by it
        outcome = function()

    def replay() -> Outcome:
        graph.replay()
        return outcome

    return replay


RECORD: Record = record_graph


class GraphedStep:
    """The mean loss of a batch, by replaying what the first batch's was.

    Args:
        terms: the loss, called with a denoiser and one batch.
        weighting: what the loss has to learn.
    """

    def __init__(self, terms: Terms, weighting: nn.Module | None = None) -> None:
        self.terms, self.weighting = terms, weighting
        self.replay: Function | None = None
        self.signature: Any = None
        self.has_failed = self.has_told = False

    def __call__(self, denoiser: Denoiser, *batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss, differentiable once by the weights, and the terms (B,); arguments as of the loss."""
        leaves, structure = pytree.tree_flatten(batch)
        signature = (structure, [_describe(leaf) for leaf in leaves])
        if self.signature is None:
            self.signature = signature
            self._record(denoiser, leaves, structure)
        elif signature != self.signature and not self.has_failed:
            self._tell("a batch of another shape runs without it")
        if self.replay is None or signature != self.signature:
            return mean_loss(self.terms, denoiser, *batch)
        for own, leaf in zip(self.leaves, leaves, strict=True):
            if isinstance(leaf, Tensor):
                own.detach().copy_(leaf.detach())
        outcome = self.replay()
        loss = _Recorded.apply(outcome.loss, outcome.gradients, *self.weights, *_on_tape(leaves))
        return loss, {name: term.clone() for name, term in outcome.terms.items()}

    def _record(self, denoiser: Denoiser, leaves: Sequence[Any], structure: pytree.TreeSpec) -> None:
        """Record the step on buffers of its own, without drawing on the run's random numbers."""
        self.leaves = [_copy(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        modules = [denoiser] if self.weighting is None else [denoiser, self.weighting]
        self.weights = [weight for each in modules for weight in each.parameters() if weight.requires_grad]
        own, sources = pytree.tree_unflatten(self.leaves, structure), [*self.weights, *_on_tape(self.leaves)]

        def step() -> Outcome:
            loss, terms = mean_loss(self.terms, denoiser, *own)
            return Outcome(loss.detach(), terms, torch.autograd.grad(loss, sources, allow_unused=True))

        devices = {weight.device for weight in self.weights if weight.is_cuda}
        try:
            with torch.random.fork_rng(devices):
                replay = RECORD(step)
                if _agree(_at_one_seed(step), _at_one_seed(replay)):
                    self.replay = replay
                else:
                    self._tell("what was recorded is not what the step gives: it runs without it")
        except (RuntimeError, NotImplementedError) as error:
            self._tell(f"this step can't be recorded and runs without it: {one_line(error, 200)}")
        self.has_failed = self.replay is None

    def _tell(self, line: str) -> None:
        if not self.has_told:
            print(f"trainer.cuda_graph: {line}", flush=True)
        self.has_told = True


def make_step(terms: Terms, is_recorded: bool, weighting: nn.Module | None = None) -> MeanLoss:
    """The mean loss of a batch, as a function of the denoiser and the batch: recorded, or as it is written."""
    graphed = GraphedStep(terms, weighting)

    def step(denoiser: Denoiser, *batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return graphed(denoiser, *batch) if is_recorded else mean_loss(terms, denoiser, *batch)

    return step


def mean_loss(terms: Terms, denoiser: Denoiser, *batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean loss of a batch, and the terms (B,) without a tape."""
    found = terms(denoiser, *batch)
    return found["loss"].mean(), {name: term.detach() for name, term in found.items()}


def use_graph(request: TrainRequest, denoiser: Denoiser) -> bool:
    """Whether a run's steps are recorded: as `trainer.cuda_graph` says, and if it is null, where nothing is against it.

    Raises:
        ConfigError: it is true, and something is.
    """
    wanted, against = request.trainer.cuda_graph, find_obstacle(request, denoiser)
    if wanted and against:
        raise ConfigError("trainer.cuda_graph", "true", f"{against}: choose null or false")
    return against is None if wanted is None else wanted


def find_obstacle(request: TrainRequest, denoiser: Denoiser) -> str | None:
    """Why steps can't be recorded; None: they can."""
    trainer = request.trainer
    obstacles = {
        "needs a GPU (trainer=gpu)": trainer.accelerator not in ("gpu", "cuda") or not torch.cuda.is_available(),
        "needs one process (trainer.devices=1)": trainer.devices not in (1, [0]) or trainer.num_nodes != 1,
        "needs trainer.strategy=auto": trainer.strategy != "auto",
        "needs trainer.precision=32-true": trainer.precision not in ("32-true", "32", 32),
        "needs trainer.accumulate_grad_batches=1": trainer.accumulate_grad_batches != 1,
        "needs trainer.detect_anomaly=false": trainer.detect_anomaly,
        "compile=true is not recorded": request.compile,
        str(denoiser.uncompilable): denoiser.uncompilable is not None,
    }
    return next((reason for reason, holds in obstacles.items() if holds), None)


class _Recorded(torch.autograd.Function):
    """A loss whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: Sequence[Tensor | None], *sources: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(None if each is None else each * outer[0] for each in ctx.gradients)


def _copy(given: Tensor) -> Tensor:
    return given.detach().clone().requires_grad_(given.requires_grad)


def _on_tape(leaves: Sequence[Any]) -> list[Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]


def _describe(leaf: Any) -> Any:
    return (leaf.shape, leaf.dtype, leaf.device, leaf.requires_grad) if isinstance(leaf, Tensor) else leaf


def _at_one_seed(function: Function) -> list[Tensor]:
    """Copies of the loss and its gradients, with random numbers that are always the same."""
    torch.manual_seed(0)
    outcome = function()
    return [each.clone() for each in (outcome.loss, *outcome.gradients) if each is not None]


def _agree(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether two losses and their gradients are equal but for rounding."""
    largest = max(float(each.abs().max()) for each in some)
    return all(bool(((a - b).abs() <= TOLERANCE * largest).all()) for a, b in zip(some, others, strict=True))
