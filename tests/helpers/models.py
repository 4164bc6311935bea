"""Small models of every choice in conf/, with random weights, for the property tests."""

import dataclasses
import functools
import math
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from flowdiff.bijections.marginals import PIECES, Marginals
from flowdiff.data.statistics import DataStatistics, Sample
from flowdiff.denoisers.base import Denoiser
from flowdiff.denoisers.score_flow import ScoreFlow
from flowdiff.flows.context import Context
from flowdiff.flows.gated import GatedActivation
from tests.helpers.configs import CONF

IMAGE = (1, 4, 4)
CLASSES = 3
SMALL = {"n_flows": 3, "width": 12, "leading": 10, "sigma_embed_dim": 8, "cond_embed_dim": 6}
SMALL |= {"width_factor": 0.03, "transformer_layers": [1, 1, 1]}

PLANE = SMALL | {"n_flows": 2}  # few enough for a density that a grid can integrate


def shrink(config: Any, small: dict[str, Any]) -> Any:
    """The same configuration with small sizes, at whatever depth they stand."""
    if isinstance(config, dict):
        return {
            k: small[k] if k in small and type(v) in (int, float, type(small[k])) else shrink(v, small)
            for k, v in config.items()
        }
    return [shrink(v, small) for v in config] if isinstance(config, list) else config


def make(
    shape: tuple[int, ...] = IMAGE,
    num_classes: int = CLASSES,
    overrides: dict[str, Any] | None = None,
    **groups: str,
) -> Denoiser:
    """The denoiser of these choices, small, at its initialisation. Overrides: {"flow.depth": 0, ...}."""
    chosen = {
        "activation": "softplus",
        "flow": "coupling",
        "precondition": "annealed",
        "base": "normal",
        "conditioning": "film",
        "denoiser": "score_flow",
    } | groups
    config = OmegaConf.create({g: OmegaConf.load(CONF / g / f"{name}.yaml") for g, name in chosen.items()})
    resolved = shrink(OmegaConf.to_container(config, resolve=False), SMALL if len(shape) > 1 else PLANE)
    config = OmegaConf.create(resolved)
    for key, value in (overrides or {}).items():
        OmegaConf.update(config, key, value)
    node = OmegaConf.to_container(config, resolve=True)["denoiser"]
    return instantiate(node, _convert_="all", shape=shape, num_classes=num_classes)


def statistics(shape: tuple[int, ...] = IMAGE, num_classes: int = CLASSES) -> DataStatistics:
    """Moments of correlated data in float64; images have a direction that never varies."""
    d = math.prod(shape)
    generator = torch.Generator().manual_seed(d)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    basis = torch.linalg.qr(normal(d, d)).Q
    eigenvalues = torch.linspace(0, -6, d, dtype=torch.float64).exp()
    eigenvalues = eigenvalues if d > 2 else eigenvalues + 0.05
    eigenvalues[2:][-1:] = 0.0
    means = 0.3 * normal(num_classes + 1, d)
    means[-1] = means[:-1].mean(0) if num_classes else means[-1]
    edges, histograms = torch.linspace(-1.2, 1.2, PIECES + 1, dtype=torch.float64), (2 * normal(d, PIECES)).softmax(1)
    return DataStatistics(means, eigenvalues, basis, 0.6, lambda: Marginals(edges, histograms))


def with_sample(given: DataStatistics) -> DataStatistics:
    """The same moments with 60 rows of Gaussian data that have them."""
    basis = given.eigenvectors
    assert basis is not None
    classes = torch.arange(60) % len(given.class_means)
    noise = torch.randn(60, len(basis), generator=torch.Generator().manual_seed(0), dtype=basis.dtype)
    x = given.class_means[classes] + noise * given.eigenvalues.sqrt() @ basis.T
    return dataclasses.replace(given, sample=lambda _: Sample(x, classes, torch.full((60,), 1 / 60)))


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Non-zero random numbers for all parameters, gates inside (0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            deviation = 0.8 / math.sqrt(p[0].numel()) if p.dim() > 1 else 0.3
            p.normal_(0, deviation, generator=generator)
        for module in model.modules():
            if isinstance(module, GatedActivation):
                module.gate.uniform_(0.2, 0.9, generator=generator)


@functools.cache
def random_flow(
    flow: str = "coupling",
    activation: str = "softplus",
    precondition: str = "annealed",
    conditioning: str = "film",
    shape: tuple[int, ...] = IMAGE,
    num_classes: int = CLASSES,
) -> ScoreFlow:
    """A fitted model in float64 with random weights, in eval mode. Shared between tests: don't change it."""
    groups = {
        "flow": flow,
        "activation": activation,
        "precondition": precondition,
        "conditioning": conditioning,
    }
    model = make(shape, num_classes, **groups).double().eval()
    model.fit(statistics(shape, num_classes))
    randomise(model)
    assert isinstance(model, ScoreFlow)
    return model


def points(
    n: int = 6, shape: tuple[int, ...] = IMAGE, num_classes: int = CLASSES, seed: int = 1
) -> tuple[Tensor, Tensor, Tensor | None]:
    """x (n, *shape) noised data, sigma (n,) from 0.002 to 80, labels (n,) of all classes, float64."""
    generator = torch.Generator().manual_seed(seed)
    sigma = torch.linspace(math.log(0.002), math.log(80.0), n, dtype=torch.float64).exp()
    x0 = 0.7 * torch.randn(n, *shape, generator=generator, dtype=torch.float64)
    eps = torch.randn(n, *shape, generator=generator, dtype=torch.float64)
    labels = torch.arange(n) % num_classes if num_classes else None
    return x0 + sigma.view(-1, *[1] * len(shape)) * eps, sigma, labels


def classes_of(model: ScoreFlow, n: int, labels: Tensor | None) -> Tensor:
    """Rows of the class table; the null class is the last."""
    return torch.full((n,), model.num_classes) if labels is None else labels


def latent(model: ScoreFlow, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
    """z (B, d) = f(T(x - m)), the model's map without its log-determinants."""
    classes = classes_of(model, len(x), labels)
    u, _ = model.precondition(x.flatten(1), sigma, classes)
    context = Context(model.embed(sigma, classes), model.precondition.kappa(sigma))
    return model.flow(u.view_as(x), context)[0].flatten(1)


def jacobian(model: ScoreFlow, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
    """dz/dx of every sample, (B, d, d), by autograd, one row of all samples at a time (they don't interact)."""
    inner = x.clone().requires_grad_()
    z = latent(model, inner, sigma, labels)
    rows = [torch.autograd.grad(column.sum(), inner, retain_graph=True)[0].flatten(1) for column in z.unbind(1)]
    return torch.stack(rows, 1)
