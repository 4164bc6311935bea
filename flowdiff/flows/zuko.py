r"""Any normalizing flow of the library zuko (Rozet et al. 2022, https://zuko.readthedocs.io), by its name.

    z, logdet = f(u; context),      context = (embedding of σ and class, κ(σ)),

f the transform of zuko's flow, whose base is N(0, I): log N(z; 0, I) + logdet is zuko's own log_prob. A flow of zuko
is a composition of maps with parameters φ = network(u, context), and the networks are the one thing changed:

    φ = κ(σ)·network(soft_limit(u, context)),      network = 0 at the start,

which is the identity where φ = 0 is: NSF (Durkan et al. 2019, arXiv:1906.04032), MAF (Papamakarios et al. 2017,
arXiv:1705.07057), NICE and RealNVP (Dinh et al. 2016, arXiv:1605.08803) and BPF (Sick et al. 2020, arXiv:2004.00464).
The others of zuko are refused: the image of GF, NAF, UNAF and SOSPF is bounded, so that their density integrates to
less than 1; NCSF's base is uniform; CNF's log-determinant can't be differentiated twice. `activation=` does not
enter: the nonlinearity is zuko's.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flowdiff.errors import ConfigError, how_to_install, one_line
from flowdiff.flows.base import Flow
from flowdiff.flows.context import Context
from flowdiff.nn.bounds import soft_limit
from flowdiff.options import Layers, Size, checked

FAR = 1e6


class Conditioner(nn.Module):
    """κ·network(soft_limit(inputs)), 0 at the start, of inputs (B, …, n) whose last column is κ."""

    def __init__(self, network: nn.Sequential) -> None:
        super().__init__()
        self.network = network
        for parameter in network[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs[..., -1:] * self.network(soft_limit(inputs)).to(inputs.dtype)


class ZukoFlow(Flow):
    """A flow of `zuko.flows` on flattened samples. Its inverse is zuko's: d passes if it is autoregressive.

    Args:
        shape: shape of a sample.
        context_dim: length of the embedding of σ and class.
        name: NSF, MAF, NICE, RealNVP or BPF, as in `zuko.flows`.
        n_flows: number of its transforms.
        width, depth: of each network, SiLU between its layers.
        options: further arguments of the flow's constructor, as {bins: 16} or {passes: 2} (couplings).

    Raises:
        ConfigError: zuko is not installed; another name; options that zuko does not take.
    """

    @checked
    def __init__(
        self,
        shape: tuple[int, ...],
        context_dim: int,
        name: str = "NSF",
        n_flows: Layers = 3,
        width: Size = 128,
        depth: Layers = 2,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        hidden = [width] * depth
        arguments = {"transforms": n_flows, "hidden_features": hidden, "activation": nn.SiLU}
        flow_class = find_flow(name)
        try:
            self.flow = adapt(flow_class(math.prod(shape), context_dim + 1, **arguments | dict(options or {})))
            self.flow(torch.zeros(1, context_dim + 1)).log_prob(torch.zeros(1, math.prod(shape)))
        except (TypeError, ValueError, AssertionError, RuntimeError, IndexError) as error:
            reason = one_line(error, 200)
            raise ConfigError("flow.options", options, f"zuko.flows.{name} does not take it: {reason}") from error

    def _transform(self, context: Context) -> Any:
        return self.flow(torch.cat([context.embedding, context.kappa[:, None]], 1)).transform

    def forward(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        z, logdet = self._transform(context).call_and_ladj(x.flatten(1))
        return z.view_as(x), logdet

    def inverse(self, z: Tensor, context: Context) -> Tensor:
        return self._transform(context).inv(z.flatten(1)).view_as(z)


def library() -> Any:
    """The package zuko.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import zuko.flows
    except ImportError as error:
        raise ConfigError("flow", "zuko", f"needs the package zuko: {how_to_install('zuko')}") from error
    return zuko


def find_flow(name: str) -> type[nn.Module]:
    """The class of `zuko.flows` with this name.

    Raises:
        ConfigError: there is none, or it is no flow of this package's kind, with the names that are.
    """
    zuko = library()
    base = zuko.lazy.Flow
    flows = {k: v for k, v in vars(zuko.flows).items() if isinstance(v, type) and issubclass(v, base) and v is not base}
    why = misfit(flows[name]) if name in flows else "zuko has no flow of this name"
    if why:
        usable = sorted(k for k, v in flows.items() if misfit(v) is None)
        raise ConfigError("flow.name", name, f"{why}; must be one of {', '.join(usable)}")
    return flows[name]


def misfit(flow_class: type[nn.Module]) -> str | None:
    """Why a flow of zuko can't be the density of a denoiser, found out on points of the plane; None if it can."""
    with torch.random.fork_rng([]):  # the weights of this one leave no trace in those of the model
        flow = adapt(flow_class(2, 1)).double()
    context, x = torch.zeros(1, 1).double(), torch.tensor([[0.3, -0.2]]).double()
    normal = torch.distributions.Normal(0.0, 1.0)
    if not torch.allclose(flow.base().log_prob(x), normal.log_prob(x).sum(1)):
        return "its base is not a standard normal"
    far = flow(context).transform(torch.full_like(x, FAR))
    if not (far.abs() > FAR**0.5).all():
        return "its image is bounded, so that its density is not normalised"
    try:
        score = torch.func.grad(lambda points: flow(context).log_prob(points).sum())
        torch.func.jvp(score, (x,), (x,))
    except RuntimeError:
        return "its log-determinant can't be differentiated twice"
    return None


def adapt(flow: Any) -> Any:
    """zuko's flow with its networks behind a `Conditioner`, and slopes that torch.func differentiates."""
    for module in list(flow.modules()):
        if isinstance(getattr(module, "hyper", None), nn.Sequential):
            module.hyper = Conditioner(module.hyper)
        univariate = getattr(module, "univariate", None)
        if univariate is not None and not isinstance(univariate, nn.Module):
            module.univariate = partial(differentiable, univariate)
    return flow


def differentiable(univariate: Callable[..., Any], *parameters: Tensor) -> Any:
    """zuko's transform; one that takes its slope from torch.autograd.grad, where torch.func can't follow, takes it
    from forward mode instead.
    """
    transform = univariate(*parameters)
    by_autograd = library().transforms.MonotonicTransform.call_and_ladj
    if type(transform).call_and_ladj is by_autograd:
        transform.call_and_ladj = partial(value_and_log_slope, transform.f)
    return transform


def value_and_log_slope(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """f(x) and log f'(x), shape of x, of an increasing elementwise function."""
    value, slope = torch.func.jvp(function, (x,), (torch.ones_like(x),))  # type: ignore[misc]
    return value, slope.log()
