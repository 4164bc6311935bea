r"""Denoisers: D(x, σ, labels), the interface of EDM's and k-diffusion's samplers. Here: the score of a flow.

    u, logdet_T = T(σ)(x − m(σ, c))                  whitening (`denoisers.precondition`)
    z, logdet_f = f(u; σ, c)                         the flow (`flows`)
    log p(x; σ, c) = log q(z; σ, c) + logdet_f + logdet_T    q the base (`flows.bases`), N(z; 0, I) as a rule
    s(x; σ, c)     = ∇x log p(x; σ, c)               the exact gradient of an exact density
    D(x; σ, c)     = x + σ² s(x; σ, c)               Tweedie's formula

The score is the gradient of log p summed over the batch: samples do not interact. It is taken in one place, inside
no_grad and inference_mode too, where it is not made differentiable itself: that tape is a third of its cost. Fused
attention kernels have a first derivative only: where a second one may follow (a loss on the score), attention is told
to run as plain matrix products.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowdiff.data.statistics import DataStatistics
from flowdiff.denoisers.base import UNPERTURBED, Denoiser, Perturbation, Sigma, batch_sigma
from flowdiff.denoisers.precondition import Precondition
from flowdiff.errors import FlowdiffError
from flowdiff.flows.base import Flow
from flowdiff.flows.bases import Base, Normal
from flowdiff.flows.context import Context
from flowdiff.nn.attention import attention_for
from flowdiff.nn.embeddings import Conditioning
from flowdiff.tensors import per_sample


class ScoreFlow(Denoiser):
    """The denoiser whose score is the gradient of a flow's log-density.

    Args:
        shape: shape of a sample.
        num_classes: K, 0 for none.
        flow: makes the flow, called with shape= and context_dim=.
        precondition: makes the whitening, called with dim= and num_classes=.
        conditioning: makes the embedding of σ and class, called with num_classes=.
        base: makes the density that the flow carries the data to, called with dim= and num_classes=. It is standard
            normal, whatever is asked for, where the embedding is joined to the flow's input: z isn't of the data alone.
    """

    has_density = True
    by_gradient = True

    def __init__(
        self,
        shape: tuple[int, ...],
        num_classes: int,
        flow: Callable[..., Flow],
        precondition: Callable[..., Precondition],
        conditioning: Callable[..., Conditioning],
        base: Callable[..., Base] = Normal,
    ) -> None:
        embed = conditioning(num_classes=num_classes)
        super().__init__(shape, embed.num_classes)
        self.embed = embed
        self.dim = math.prod(shape)
        self.precondition = precondition(dim=self.dim, num_classes=embed.num_classes)
        inner, context_dim = (self.dim + embed.dim, 1) if embed.joint else (None, embed.dim)
        self.flow = flow(shape=tuple(shape) if inner is None else (inner,), context_dim=context_dim)
        self.base = (Normal if embed.joint else base)(dim=self.dim, num_classes=embed.num_classes)
        self.normalized = self.flow.normalized and not embed.joint
        self.has_inverse = self.normalized
        self.exact = self.flow.exact
        self.uncompilable = self.flow.uncompilable

    @property
    def sigma_data(self) -> Tensor:  # type: ignore[override]
        """EDM's σ_data, as measured on the training split."""
        return self.precondition.sigma_data

    def fit(self, statistics: DataStatistics) -> None:
        self.precondition.fit(statistics)
        self.base.fit(statistics)
        if not self.embed.joint:
            self.flow.fit(statistics)

    @property
    def wants_first_batch(self) -> bool:
        return self.flow.wants_first_batch

    @torch.no_grad()
    def initialise(self, x: Tensor, sigma: Sigma, labels: Tensor | None = None) -> None:
        levels = batch_sigma(sigma, x)
        with attention_for(False, x, levels):
            self._latent(x, levels, self._classes(x, labels), first_batch=True)

    def _context(
        self, sigma: Tensor, classes: Tensor, perturbation: Perturbation = UNPERTURBED, first_batch: bool = False
    ) -> tuple[Context, Tensor]:
        """What the flow is given, and what of the embedding is joined to its input, (B, 0) unless joint."""
        with torch.autocast(sigma.device.type, enabled=False):  # every log-scale is made of it
            embedding = self.embed(sigma, classes, perturbation.shift)
        seen, joined = embedding, embedding[:, :0]
        if self.embed.joint:
            seen, joined = torch.ones_like(sigma)[:, None], embedding
        kappa = self.precondition.kappa(sigma)
        return Context(seen, kappa, perturbation.dropout, perturbation.probes, first_batch), joined

    def _latent(
        self,
        x: Tensor,
        sigma: Tensor,
        classes: Tensor,
        perturbation: Perturbation = UNPERTURBED,
        first_batch: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """z (B, dim; with the embedding's dimensions if joint) and log|det dz/dx| (B,)."""
        context, joined = self._context(sigma, classes, perturbation, first_batch)
        with torch.autocast(x.device.type, enabled=False):
            u, logdet = self.precondition(x.flatten(1), sigma, classes)
        h = torch.cat([u, joined], 1) if self.embed.joint else u.reshape(x.shape)
        z, change = self.flow(h, context)
        return z.flatten(1), logdet + change

    def _log_prob(self, x: Tensor, sigma: Tensor, classes: Tensor, perturbation: Perturbation) -> Tensor:
        z, logdet = self._latent(x, sigma, classes, perturbation)
        with torch.autocast(x.device.type, enabled=False):
            return logdet + self.base.log_prob(z, sigma, classes, self.precondition)

    def log_prob(
        self, x: Tensor, sigma: Sigma, labels: Tensor | None = None, perturbation: Perturbation = UNPERTURBED
    ) -> Tensor:
        """log p(x; σ, c) in nats, (B,). Arguments as in `denoise`.

        With conditioning=concat it is the joint log-density of x and the embedding: its gradient by x is the score,
        but it is no likelihood of x; `normalized` says so.
        """
        levels, classes = batch_sigma(sigma, x), self._classes(x, labels, perturbation.drop)
        by_inputs = torch.is_grad_enabled() and (x.requires_grad or levels.requires_grad)
        with attention_for(by_inputs, x, levels):
            return self._log_prob(x, levels, classes, perturbation)

    def score_and_log_prob(
        self, x: Tensor, sigma: Sigma, labels: Tensor | None = None, perturbation: Perturbation = UNPERTURBED
    ) -> tuple[Tensor, Tensor]:
        """s(x; σ, c), shape of x, and log p(x; σ, c), (B,), from one pass."""
        if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
            x, sigma, labels, *moved = (_out_of_inference(given) for given in (x, sigma, labels, *perturbation))
            with torch.inference_mode(False), torch.no_grad():
                return self.score_and_log_prob(x, sigma, labels, Perturbation(*moved))
        levels, classes = batch_sigma(sigma, x), self._classes(x, labels, perturbation.drop)
        device = x.device.type
        autocast, low = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

        def log_prob(points: Tensor) -> Tensor:
            with torch.autocast(device, low, enabled=autocast):
                return self._log_prob(points, levels, classes, perturbation)

        again = torch.is_grad_enabled()
        if not torch.compiler.is_compiling():
            again = again and any(given.requires_grad for given in (x, levels, *self.parameters()))
        with attention_for(again, x, levels), torch.autocast(device, enabled=False):  # also in the whitening's backward
            return gradient(log_prob, x, again)

    def score(
        self, x: Tensor, sigma: Sigma, labels: Tensor | None = None, perturbation: Perturbation = UNPERTURBED
    ) -> Tensor:
        """s(x; σ, c) = ∇x log p(x; σ, c), shape of x."""
        return self.score_and_log_prob(x, sigma, labels, perturbation)[0]

    def denoise(
        self, x: Tensor, sigma: Sigma, labels: Tensor | None = None, perturbation: Perturbation = UNPERTURBED
    ) -> Tensor:
        score = self.score(x, sigma, labels, perturbation)
        return x + per_sample(batch_sigma(sigma, x).square(), x) * score

    def latent(self, x: Tensor, sigma: Sigma, labels: Tensor | None = None) -> Tensor:
        """z = f(T(x − m)), shape of x: standard normal if x is a sample of p(x; σ, c). The inverse of `inverse`.

        Where the base is not normal: the standard normal numbers that the base makes z of.
        """
        self._need_inverse()
        levels, classes = batch_sigma(sigma, x), self._classes(x, labels)
        z, _ = self._latent(x, levels, classes)
        return self.base.to_normal(z, levels, classes, self.precondition).reshape(x.shape)

    def _need_inverse(self) -> None:
        if not self.has_inverse:
            raise FlowdiffError(
                "this model has no inverse (activation.leak=0 or conditioning=concat): choose another sampler"
            )

    @torch.no_grad()
    def inverse(self, z: Tensor, sigma: Sigma, labels: Tensor | None = None) -> Tensor:
        """x = T⁻¹f⁻¹(z): a sample of p(x; σ, c) if z (B, *shape) is standard normal.

        Raises:
            FlowdiffError: if the flow is not onto (leak 0) or its input is not x alone (concat).
        """
        self._need_inverse()
        levels, classes = batch_sigma(sigma, z), self._classes(z, labels)
        context, _ = self._context(levels, classes)
        u = self.base.from_normal(z.flatten(1), levels, classes, self.precondition)
        u = self.flow.inverse(u.reshape(z.shape), context)
        return self.precondition.inverse(u.flatten(1), levels, classes).reshape(z.shape)


def gradient(log_prob: Callable[[Tensor], Tensor], x: Tensor, again: bool) -> tuple[Tensor, Tensor]:
    """∇x of log_prob summed over the batch, shape of x, and log_prob (B,); differentiable themselves if `again`.

    `torch.func.grad`, which other transforms and torch.compile follow, makes them so always.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():

        def summed(points: Tensor) -> tuple[Tensor, Tensor]:
            value = log_prob(points)
            return value.sum(), value

        return torch.func.grad(summed, has_aux=True)(x)
    with torch.enable_grad():
        points = x if again and x.requires_grad else x.detach().requires_grad_()
        value = log_prob(points)
        (found,) = torch.autograd.grad(value.sum(), points, create_graph=again)
    return (found, value) if again else (found, value.detach())


def _out_of_inference(given: Any) -> Any:
    """A tensor that a tape may keep, of one that was made in inference mode; anything else as it is."""
    with torch.inference_mode(False):
        return given.clone() if isinstance(given, Tensor) and given.is_inference() else given
