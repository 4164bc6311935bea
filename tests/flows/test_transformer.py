"""The transformer flow against a plain reading of its formulas; its two inversions, its memory and its kernels."""

import copy
import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from flowdiff.denoisers.score_flow import ScoreFlow
from flowdiff.errors import ConfigError
from flowdiff.flows.context import Context
from flowdiff.flows.patches import patch_size
from flowdiff.flows.transformer import AutoregressiveBlock, TransformerFlow
from flowdiff.nn.attention import CausalTransformer
from tests.helpers.configs import build
from tests.helpers.models import make, points, random_flow, randomise, statistics

IMAGE = (1, 8, 8)  # 16 patches of 4 pixels


def model_of(shape: tuple[int, ...] = IMAGE, **overrides: Any) -> ScoreFlow:
    """With random weights, in float64."""
    named = {f"flow.{key}": value for key, value in overrides.items()}
    model = make(shape, flow="transformer", overrides=named).double()
    assert isinstance(model, ScoreFlow)
    model.fit(statistics(shape))
    randomise(model)
    return model


def flow_of(model: ScoreFlow) -> TransformerFlow:
    assert isinstance(model.flow, TransformerFlow)
    return model.flow


def first_block(model: ScoreFlow) -> AutoregressiveBlock:
    block = flow_of(model).blocks.steps[0]
    assert isinstance(block, AutoregressiveBlock)
    return block


def by_hand(network: CausalTransformer, seen: list[Tensor], embedding: Tensor) -> Tensor:
    """The output after the patches `seen`, of one sample: every formula of the module, one vector at a time."""

    def norm(h: Tensor, layer: torch.nn.Module) -> Tensor:
        return h / ((h**2).mean() + 1e-5).sqrt() * layer.weight

    def limited(x: Tensor) -> Tensor:
        return x / (1 + (x / 8) ** 2).sqrt()

    tokens = [torch.zeros(len(network.position[0]), dtype=embedding.dtype)]
    tokens += [network.first.weight @ limited(x) + network.first.bias for x in seen]
    rows = [h + p + network.condition(embedding) for h, p in zip(tokens, network.position, strict=False)]
    for layer in network.layers:
        size = len(rows[0]) // layer.heads  # type: ignore[operator]
        triples = [(layer.qkv.weight @ norm(h, layer.norms[0])).chunk(3) for h in rows]  # type: ignore
        attended = []
        for t in range(len(rows)):
            parts = []
            for head in range(layer.heads):  # type: ignore[arg-type]
                here = slice(head * size, (head + 1) * size)
                scores = torch.stack([triples[t][0][here] @ triples[s][1][here] for s in range(t + 1)])
                shares = (scores / math.sqrt(size)).softmax(0)
                parts.append(sum(shares[s] * triples[s][2][here] for s in range(t + 1)))
            attended.append(torch.cat(parts))  # type: ignore[arg-type]
        rows = [h + layer.mix(a) for h, a in zip(rows, attended, strict=True)]  # type: ignore[operator]
        inner, outer = layer.mlp.values()  # type: ignore
        for t, h in enumerate(rows):
            hidden = inner(norm(h, layer.norms[1]))  # type: ignore
            rows[t] = h + outer(hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2)
    return network.last.weight @ norm(rows[-1], network.norm) + network.last.bias


@torch.no_grad()
def test_a_block_is_its_formula() -> None:
    flow = flow_of(model_of(heads=3, depth=2))
    x = torch.randn(2, 16, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    context = Context(torch.randn(2, 14, dtype=torch.float64), torch.tensor([0.9, 0.3], dtype=torch.float64))
    for block, backwards in zip(flow.blocks.steps[0:4:2], (False, True), strict=True):
        z, logdet = block(x, context)
        for row in range(2):
            patches = list(x[row].flip(0) if backwards else x[row])
            expected, total = [], torch.zeros((), dtype=torch.float64)
            for t, patch in enumerate(patches):
                alpha, mu = context.kappa[row] * by_hand(block.network, patches[:t], context.embedding[row]).view(2, 4)
                alpha = 2.0 * torch.tanh(alpha / 2.0)
                expected.append((patch - mu) * torch.exp(-alpha))
                total = total - alpha.sum()
            of_row = torch.stack(expected)
            torch.testing.assert_close(z[row], of_row.flip(0) if backwards else of_row)
            torch.testing.assert_close(logdet[row], total)


@pytest.mark.parametrize("number", [0, 1])
def test_the_jacobian_of_a_block_is_triangular(number: int) -> None:
    """Blocks of 4 × 4: diagonal on the diagonal, dense before it, 0 after it; the other way round in block 1."""
    block = flow_of(model_of()).blocks.steps[2 * number]
    x = torch.randn(1, 16, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    context = Context(torch.randn(1, 14, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    jacobian = torch.autograd.functional.jacobian(lambda y: block(y, context)[0], x)[0, :, :, 0]
    size = jacobian.abs().amax((1, 3))
    before = torch.ones(16, 16).tril(-1).bool()
    before = before.T if number else before
    assert (size[before] > 0).all()
    assert (size[before.T] == 0).all()
    same = jacobian[range(16), :, range(16)]
    torch.testing.assert_close(same, torch.diag_embed(same.diagonal(dim1=1, dim2=2)))
    assert (same.diagonal(dim1=1, dim2=2) > 0).all()


def test_sigma_and_class_reach_every_patch_also_the_first() -> None:
    """Block 0 transforms its first patch by σ and class alone."""
    model = model_of(n_flows=1)
    zeros = torch.zeros(3, 64, dtype=torch.float64)
    levels = torch.tensor([0.1, 0.2, 0.1], dtype=torch.float64)
    kappa = torch.ones(3, dtype=torch.float64)
    context = Context(model.embed(levels, torch.tensor([0, 0, 1])), kappa)
    z, _ = first_block(model)(zeros.view(3, 16, 4), context)
    for other in (1, 2):
        assert ((z[0] - z[other]).abs() > 1e-6).all(), other


# -- inversions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "patch"), [(IMAGE, 2), ((3, 4, 8), 4), ((12,), 3), (IMAGE, 1)])
@pytest.mark.parametrize(("dtype", "tolerance", "within"), [(torch.float32, 1e-6, 1e-5), (torch.float64, 1e-12, 1e-9)])
def test_jacobi_agrees_with_the_sequential_inversion(
    shape: tuple[int, ...], patch: int, dtype: torch.dtype, tolerance: float, within: float
) -> None:
    """Rows of different σ and class, in one batch."""
    sequential = model_of(shape, patch=patch).to(dtype)
    jacobi = model_of(shape, patch=patch, jacobi_tolerance=tolerance).to(dtype)
    x, sigma, labels = points(shape=shape)
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)
    sigma = sigma.clamp(max=2.0).to(dtype)
    expected = sequential.inverse(z, sigma, labels)
    assert (expected - z).abs().mean() > 0.1
    torch.testing.assert_close(jacobi.inverse(z, sigma, labels), expected, rtol=within, atol=within)


def test_jacobi_stops_early_and_a_row_does_not_wait_for_its_neighbours() -> None:
    """At κ → 0 a row is the identity and takes 2 passes; at κ = 1 it takes more, and T + 1 are never needed."""
    block = first_block(model_of(jacobi_tolerance=1e-9))
    rows: list[int] = []
    block.network.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    z = torch.randn(2, 16, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    context = Context(torch.randn(2, 14, dtype=torch.float64), torch.tensor([1.0, 1e-12], dtype=torch.float64))
    both = block.inverse(z, context)
    assert rows[:3] == [2, 1, 1] and set(rows[1:]) == {1} and len(rows) <= 16
    torch.testing.assert_close(both[:1], block.inverse(z[:1], Context(context[0][:1], context[1][:1])))


def test_without_a_tolerance_to_reach_jacobi_is_exact_after_as_many_passes_as_patches() -> None:
    exact = model_of(jacobi_tolerance=1e-300)
    z, sigma, labels = points(shape=IMAGE)
    sigma = sigma.clamp(max=2.0)
    torch.testing.assert_close(exact.inverse(z.tanh(), sigma, labels), model_of().inverse(z.tanh(), sigma, labels))


@pytest.mark.parametrize("tolerance", [None, 1e-12])
def test_chunks_do_not_change_the_inverse(tolerance: float | None) -> None:
    z, sigma, labels = points(7, IMAGE)
    whole, parts = (model_of(jacobi_tolerance=tolerance, inverse_chunk=rows) for rows in (100, 3))
    sigma = sigma.clamp(max=2.0)
    torch.testing.assert_close(parts.inverse(z.tanh(), sigma, labels), whole.inverse(z.tanh(), sigma, labels))


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made within it took at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        if storage._cdata not in self.known:
            self.known.add(storage._cdata)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def test_the_memory_of_an_inversion_is_bounded_by_the_chunk() -> None:
    """A batch 8 times as large costs 8 times the samples, but not one more byte of keys and values."""
    cache = 2 * 2 * 16 * 16 * 12 * 8  # depth 2, keys and values, 16 rows, 16 patches, width 12, float64

    def peak(rows: int, chunk: int) -> int:
        model = model_of(inverse_chunk=chunk)
        z = torch.randn(rows, *IMAGE, dtype=torch.float64)
        with LiveBytes() as memory:
            memory.known.add(z.untyped_storage()._cdata)  # made before, and no copy where it is viewed
            model.inverse(z, 0.5)
        return memory.peak

    small, large, whole = peak(16, 16), peak(128, 16), peak(128, 128)
    samples = (128 - 16) * 64 * 8
    assert small > cache
    assert large - small < 5 * samples < 7 * cache * 0.6
    assert whole - small > 7 * cache


# -- kernels ----------------------------------------------------------------------------------------------------


class Kernels(TorchDispatchMode):
    """Counts the fused attention kernels that run within it, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "attention" in str(func):
            self.seen["backward" if "backward" in str(func) else "forward"] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def fused(forward: int, backward: int) -> Iterator[None]:
    with Kernels() as kernels:
        yield
    assert (kernels.seen["forward"], kernels.seen["backward"]) == (forward, backward)


LAYERS = 3 * 2  # n_flows × depth


def case() -> tuple[ScoreFlow, Tensor, Tensor, Tensor]:
    model = copy.deepcopy(random_flow("transformer", shape=IMAGE))
    x, sigma, labels = points(shape=IMAGE)
    assert labels is not None
    return model, x, sigma, labels


@pytest.mark.parametrize(("loss", "count"), [("likelihood", LAYERS), ("denoising", 0), ("mixture", 0)])
def test_the_fused_kernel_runs_where_one_derivative_is_enough(loss: str, count: int) -> None:
    model, x, sigma, labels = case()
    with fused(count, count):
        build("loss", loss)(model, x, labels, sigma, torch.ones_like(x))["loss"].mean().backward()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_sampling_and_measuring_run_the_fused_kernel(mode: Callable[[], Any]) -> None:
    model, x, sigma, labels = case()
    expected = model.score(x, sigma, labels).detach()
    with mode():
        with fused(LAYERS, LAYERS):
            score = model.score(x, sigma, labels)
        with fused(LAYERS, 0):
            model.log_prob(x, sigma, labels)
        with fused(LAYERS * 16, 0):
            model.inverse(x, sigma, labels)
    torch.testing.assert_close(score, expected)


def test_derivatives_of_the_score_in_every_mode_agree() -> None:
    """Reverse over reverse, forward over reverse, and finite differences, along one direction; and ∂log p/∂σ."""
    model, x, sigma, labels = case()
    sigma = sigma.clamp(0.1, 2.0)
    v = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        score, along = torch.func.jvp(lambda y: model.score(y, sigma, labels), (x,), (v,))
        _, pull = torch.func.vjp(lambda y: model.score(y, sigma, labels), x)
        by_sigma = torch.func.jvp(lambda s: model.log_prob(x, s, labels), (sigma,), (torch.ones_like(sigma),))[1]
        rise = model.score(x + 1e-5 * v, sigma, labels) - model.score(x - 1e-5 * v, sigma, labels)
        climb = model.log_prob(x, sigma + 1e-5, labels) - model.log_prob(x, sigma - 1e-5, labels)
    torch.testing.assert_close(along, rise / 2e-5, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(by_sigma, climb / 2e-5, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pull(v)[0], along)  # a Hessian is symmetric
    inner = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.log_prob(inner, sigma, labels).sum(), inner, create_graph=True)
    torch.testing.assert_close(torch.autograd.grad((gradient * v).sum(), inner)[0], along)


# -- patches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "patch"),
    [
        ((1, 4, 4), 2),
        ((1, 8, 8), 2),
        ((1, 28, 28), 4),
        ((3, 32, 32), 4),
        ((3, 64, 64), 8),
        ((3, 8, 4), 2),
        ((1, 7, 7), 1),
        ((1, 14, 14), 2),
        ((2,), 1),
        ((64,), 1),
        ((192,), 3),
        ((127,), 1),
    ],
)
def test_the_automatic_patch(shape: tuple[int, ...], patch: int) -> None:
    assert patch_size("transformer", shape, None) == patch


def test_a_patch_is_a_square_of_pixels_with_their_channels() -> None:
    flow = flow_of(model_of((3, 4, 6), patch=2))
    x = torch.randn(5, 3, 4, 6, dtype=torch.float64)
    patches = flow._patches(x)
    assert patches.shape == (5, 6, 12)
    torch.testing.assert_close(patches[:, 4], x[:, :, 2:4, 2:4].flatten(1))  # second row, second column
    assert torch.equal(flow._join(patches), x)


@pytest.mark.parametrize(
    ("shape", "key", "value", "message"),
    [
        (IMAGE, "patch", 3, r"patch=3: must be one of \[1, 2, 4\]"),
        (IMAGE, "patch", 8, r"patch=8: must be one of \[1, 2, 4\]"),
        (IMAGE, "patch", 0, r"patch=0: must be a whole number"),
        (IMAGE, "patch", 2.0, r"patch=2\.0: must be a whole number"),
        (IMAGE, "patch", True, r"patch=true: must be a whole number"),
        ((1, 28, 28), "patch", 8, r"patch=8: must be one of \[1, 2, 4, 7, 14\]"),
        ((3, 8, 6), "patch", 4, r"patch=4: must be one of \[1, 2\]"),
        ((12,), "patch", 5, r"patch=5: must be one of \[1, 2, 3, 4, 6\]"),
        ((1,), "patch", None, r"flow=transformer: needs data of at least two patches"),
        ((4, 4), "patch", None, r"flow=transformer: needs images"),
        (IMAGE, "heads", 5, r"heads=5: must divide flow\.width=12"),
        (IMAGE, "heads", 0, r"heads=0: "),
        (IMAGE, "width", 0, r"width=0: "),
        (IMAGE, "depth", 0, r"depth=0: "),
        (IMAGE, "n_flows", 0, r"n_flows=0: "),
        (IMAGE, "max_log_scale", 0.0, r"max_log_scale=0\.0: "),
        (IMAGE, "inverse_chunk", 0, r"inverse_chunk=0: "),
        (IMAGE, "jacobi_tolerance", 0.0, r"jacobi_tolerance=0\.0: "),
        (IMAGE, "jacobi_tolerance", "jacobi", r"jacobi_tolerance=jacobi: "),
    ],
)
def test_mistakes_are_named(shape: tuple[int, ...], key: str, value: object, message: str) -> None:
    with pytest.raises(Exception, match=message) as caught:
        model_of(shape, **{key: value})
    assert isinstance(caught.value.__cause__, ConfigError)
