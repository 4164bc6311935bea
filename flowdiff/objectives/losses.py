r"""Training objectives, per sample, at x = x0 + σε with d coordinates.

    likelihood   (σ/σ_data)^p · (−log p(x; σ, c)) / d           nats per dimension, one backward pass
    denoising    λ(σ)·|D(x; σ, c) − x0|² / d                    λ = (σ² + σ_data²)/(σ·σ_data)², EDM's weight;
                                                                a double backward pass for a flow
    mixture      likelihood + weight · denoising                both from one evaluation of the flow
    annealed_mixture    a(t)·likelihood + b(t)·denoising        t ∈ [0, 1] the share of training that is done
    fokker_planck       likelihood + weight · (r/d)²            r the residual of the heat equation that joins the
                                                                densities of all σ (`objectives.fokker_planck`)

Denoising score matching (Vincent 2011) is blind to what only shifts log p, so the likelihood is reported beside it.
"""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

from torch import Tensor

from flowdiff.denoisers.base import UNPERTURBED, Denoiser, Perturbation
from flowdiff.denoisers.score_flow import ScoreFlow
from flowdiff.errors import FlowdiffError
from flowdiff.objectives.fokker_planck import rademacher, residual, slopes
from flowdiff.objectives.weighting import Weighting
from flowdiff.options import Length, NonNegative, Positive, Power, checked, snake_case
from flowdiff.tensors import per_sample


class Noised(NamedTuple):
    """A batch of clean data and the noise that is put on it.

    Attributes:
        x0: (B, *shape), clean data.
        labels: (B,) or None.
        sigma: (B,), noise levels.
        eps: (B, *shape), standard normal.
        perturbation: of the denoiser, in a training step.
        progress: the share of training that is done, in [0, 1].
    """

    x0: Tensor
    labels: Tensor | None
    sigma: Tensor
    eps: Tensor
    perturbation: Perturbation = UNPERTURBED
    progress: Tensor | float = 1.0

    @property
    def x(self) -> Tensor:
        """x0 + σε."""
        return self.x0 + per_sample(self.sigma, self.x0) * self.eps


class Loss:
    """A training objective. A subclass gives `terms`.

    Attributes:
        weighting: of its denoising error over σ; what it has to learn is trained with the model. None: no other than
            EDM's.
    """

    needs_likelihood = False
    weighting: Weighting | None = None

    def check(self, denoiser: Denoiser) -> None:
        """Raise a `FlowdiffError` if the denoiser can't be trained with this objective."""
        if self.needs_likelihood and not denoiser.normalized:
            raise FlowdiffError(
                f"loss={snake_case(type(self).__name__)} needs a normalised density of x, and this model has none "
                "(denoiser=unet, conditioning=concat or activation.leak=0): choose loss=denoising"
            )

    def __call__(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        labels: Tensor | None,
        sigma: Tensor,
        eps: Tensor,
        perturbation: Perturbation = UNPERTURBED,
        progress: Tensor | float = 1.0,
    ) -> dict[str, Tensor]:
        """The terms of the loss for each sample; arguments as in `Noised`.

        Returns:
            "loss" (B,), which is optimised, and what it is made of: "nll" (nats per dimension), "denoising" (weighted
            squared error per dimension), "fokker_planck" (squared residual per dimension).
        """
        return self.terms(denoiser, Noised(x0, labels, sigma, eps, perturbation, progress))

    def terms(self, denoiser: Denoiser, batch: Noised) -> dict[str, Tensor]:
        """What `__call__` returns."""
        raise NotImplementedError

    def weigh(self, error: Tensor, sigma: Tensor) -> Tensor:
        """What counts of the denoising errors (B,) at σ (B,)."""
        return error if self.weighting is None else self.weighting(error, sigma)


class Likelihood(Loss):
    """Exact likelihood of the noised data.

    Args:
        power: p, the weight's exponent.
    """

    needs_likelihood = True

    @checked
    def __init__(self, power: Power = 0.5) -> None:
        self.power = power

    def weight(self, denoiser: ScoreFlow, sigma: Tensor) -> Tensor:
        """(σ/σ_data)^p, (B,)."""
        return (sigma / denoiser.sigma_data) ** self.power

    def terms(self, denoiser: Denoiser, batch: Noised) -> dict[str, Tensor]:
        assert isinstance(denoiser, ScoreFlow)
        nll = -denoiser.log_prob(batch.x, batch.sigma, batch.labels, batch.perturbation) / denoiser.dim
        return {"loss": self.weight(denoiser, batch.sigma) * nll, "nll": nll.detach()}


class Unweighted(Likelihood):
    """Exact likelihood, every noise level alike: p = 0."""

    def __init__(self) -> None:
        super().__init__(power=0.0)


class Denoising(Loss):
    """Denoising score matching with EDM's weight.

    Args:
        weighting: of the errors, beside it.
    """

    @checked
    def __init__(self, weighting: Weighting | None = None) -> None:
        self.weighting = weighting

    def terms(self, denoiser: Denoiser, batch: Noised) -> dict[str, Tensor]:
        if isinstance(denoiser, ScoreFlow):
            nll, error = nll_and_error(denoiser, batch)
            return {"loss": self.weigh(error, batch.sigma), "denoising": error.detach(), "nll": nll.detach()}
        residual = denoiser(batch.x, batch.sigma, batch.labels, batch.perturbation) - batch.x0
        error = denoising_error(residual, batch.sigma, denoiser.sigma_data)
        return {"loss": self.weigh(error, batch.sigma), "denoising": error.detach()}


class Mixture(Likelihood):
    """likelihood + denoising_weight · denoising, both in every step.

    Args:
        denoising_weight: of the denoising term.
        power: exponent of the likelihood's weight over σ.
        weighting: of the denoising errors.
    """

    @checked
    def __init__(
        self, denoising_weight: NonNegative = 1.0, power: Power = 0.5, weighting: Weighting | None = None
    ) -> None:
        super().__init__(power)
        self.denoising_weight, self.weighting = denoising_weight, weighting

    def terms(self, denoiser: Denoiser, batch: Noised) -> dict[str, Tensor]:
        assert isinstance(denoiser, ScoreFlow)
        return mixture(self, denoiser, batch, self.weight(denoiser, batch.sigma), self.denoising_weight)


class AnnealedMixture(Likelihood):
    """Likelihood and denoising, whose weights go linearly from one number to another while the model is trained.

    A validation, which knows no progress, takes the weights of the end: its losses can be compared.

    Args:
        likelihood_weight: a(t) at the start and at the end.
        denoising_weight: b(t) at the start and at the end.
        power: exponent of the likelihood's weight over σ.
        weighting: of the denoising errors.

    Raises:
        ConfigError: anything but two numbers >= 0.
    """

    @checked
    def __init__(
        self,
        likelihood_weight: Annotated[Sequence[NonNegative], Length(2, 2)] = (1.0, 1.0),
        denoising_weight: Annotated[Sequence[NonNegative], Length(2, 2)] = (0.0, 1.0),
        power: Power = 0.5,
        weighting: Weighting | None = None,
    ) -> None:
        super().__init__(power)
        self.likelihood_weight = likelihood_weight
        self.denoising_weight = denoising_weight
        self.weighting = weighting

    def terms(self, denoiser: Denoiser, batch: Noised) -> dict[str, Tensor]:
        assert isinstance(denoiser, ScoreFlow)
        (a, a_end), (b, b_end), t = self.likelihood_weight, self.denoising_weight, batch.progress
        likelihood_weight = (a + (a_end - a) * t) * self.weight(denoiser, batch.sigma)
        return mixture(self, denoiser, batch, likelihood_weight, b + (b_end - b) * t)


class FokkerPlanck(Likelihood):
    """likelihood + fokker_planck_weight · (r/d)²: the densities of all noise levels are pulled towards one diffusion.

    r has the Laplacian by one random probe v for each sample, vᵀHv, so that the regulariser is, on average, r² and
    the variance of the probe, 2σ⁴ Σ_{i≠j} H_ij²: it has a cost of its own for a Hessian that is not diagonal. It
    needs third derivatives, of which one backward pass is taken after a derivative along v.

    Args:
        fokker_planck_weight: of the squared residual.
        power: exponent of the likelihood's weight over σ.
    """

    @checked
    def __init__(self, fokker_planck_weight: Positive = 1.0, power: Power = 0.5) -> None:
        super().__init__(power)
        self.fokker_planck_weight = fokker_planck_weight

    def terms(self, denoiser: Denoiser, batch: Noised) -> dict[str, Tensor]:
        assert isinstance(denoiser, ScoreFlow)

        def log_prob(x: Tensor, sigma: Tensor) -> Tensor:
            return denoiser.log_prob(x, sigma, batch.labels, batch.perturbation)

        found = slopes(log_prob, batch.x, batch.sigma, rademacher(batch.eps))
        nll = -found.log_prob / denoiser.dim
        r = residual(found.by_sigma, found.score, found.curvature, batch.sigma)
        squared = (r / denoiser.dim).square()
        loss = self.weight(denoiser, batch.sigma) * nll + self.fokker_planck_weight * squared
        return {"loss": loss, "nll": nll.detach(), "fokker_planck": squared.detach()}


def mixture(
    loss: Loss, denoiser: ScoreFlow, batch: Noised, likelihood_weight: Tensor, denoising_weight: Tensor | float
) -> dict[str, Tensor]:
    """The terms of likelihood_weight (B,) · likelihood + denoising_weight · denoising, as `loss` weighs its errors."""
    nll, error = nll_and_error(denoiser, batch)
    both = likelihood_weight * nll + denoising_weight * loss.weigh(error, batch.sigma)
    return {"loss": both, "nll": nll.detach(), "denoising": error.detach()}


def nll_and_error(denoiser: ScoreFlow, batch: Noised) -> tuple[Tensor, Tensor]:
    """−log p per dimension and the weighted denoising error, (B,) each, from one evaluation of the flow.

    D − x0 is written σ(ε + σs): without the cancellation of x + σ²s − x0 at low noise.
    """
    score, log_prob = denoiser.score_and_log_prob(batch.x, batch.sigma, batch.labels, batch.perturbation)
    sigma = per_sample(batch.sigma, score)
    error = denoising_error(sigma * (batch.eps + sigma * score), batch.sigma, denoiser.sigma_data)
    return -log_prob / denoiser.dim, error


def denoising_error(residual: Tensor, sigma: Tensor, sigma_data: Tensor) -> Tensor:
    """λ(σ)·mean over coordinates of (D − x0)², (B,), λ = (σ² + σ_data²)/(σ·σ_data)²."""
    weight = (sigma.square() + sigma_data.square()) / (sigma * sigma_data).square()
    return weight * residual.square().flatten(1).mean(1)
