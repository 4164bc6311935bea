r"""Training objectives, per sample, at x = x0 + σε with d coordinates.

    likelihood   (σ/σ_data)^p · (−log p(x; σ, c)) / d           nats per dimension, one backward pass
    denoising    λ(σ)·|D(x; σ, c) − x0|² / d                    λ = (σ² + σ_data²)/(σ·σ_data)², EDM's weight;
                                                                a double backward pass for a flow
    mixture      likelihood + weight · denoising                both from one evaluation of the flow

Denoising score matching (Vincent 2011) is blind to what only shifts log p, so the likelihood is reported beside it.
"""

import math

from torch import Tensor

from flowdiff.denoisers import Denoiser, ScoreFlow
from flowdiff.errors import FlowdiffError


class Loss:
    """A training objective."""

    needs_likelihood = False

    def check(self, denoiser: Denoiser) -> None:
        """Raise a :class:`FlowdiffError` if the denoiser can't be trained with this objective."""
        if self.needs_likelihood and not denoiser.normalized:
            raise FlowdiffError(
                f"loss={type(self).__name__.lower()} needs a normalised density of x, and this model has none "
                "(denoiser=unet, conditioning=concat or activation.leak=0): choose loss=denoising"
            )

    def __call__(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        labels: Tensor | None,
        sigma: Tensor,
        eps: Tensor,
        drop: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Terms of the loss for each sample.

        Args:
            denoiser: the model.
            x0: (B, *shape), clean data.
            labels: (B,) or None.
            sigma: (B,), noise levels.
            eps: (B, *shape), standard normal.
            drop: bool (B,), rows whose label is dropped.

        Returns:
            "loss" (B,), which is optimised, and what it is made of: "nll" (nats per dimension), "denoising" (weighted
            squared error per dimension).
        """
        raise NotImplementedError


class Likelihood(Loss):
    """Exact likelihood of the noised data.

    Args:
        power: p, the weight's exponent.
    """

    needs_likelihood = True

    def __init__(self, power: float = 0.5) -> None:
        self.power = power

    def weight(self, denoiser: ScoreFlow, sigma: Tensor) -> Tensor:
        return (sigma / denoiser.sigma_data) ** self.power

    def __call__(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        labels: Tensor | None,
        sigma: Tensor,
        eps: Tensor,
        drop: Tensor | None = None,
    ) -> dict[str, Tensor]:
        assert isinstance(denoiser, ScoreFlow)
        nll = -denoiser.log_prob(noised(x0, sigma, eps), sigma, labels, drop) / math.prod(denoiser.shape)
        return {"loss": self.weight(denoiser, sigma) * nll, "nll": nll.detach()}


class Unweighted(Likelihood):
    """Exact likelihood, every noise level alike: p = 0."""

    def __init__(self) -> None:
        super().__init__(power=0.0)


class Denoising(Loss):
    """Denoising score matching with EDM's weight."""

    def __call__(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        labels: Tensor | None,
        sigma: Tensor,
        eps: Tensor,
        drop: Tensor | None = None,
    ) -> dict[str, Tensor]:
        x = noised(x0, sigma, eps)
        if isinstance(denoiser, ScoreFlow):
            score, log_prob = denoiser.score_and_log_prob(x, sigma, labels, drop)
            error = score_matching_error(score, eps, sigma, denoiser.sigma_data)
            nll = -log_prob.detach() / math.prod(denoiser.shape)
            return {"loss": error, "denoising": error.detach(), "nll": nll}
        error = denoising_error(denoiser(x, sigma, labels, drop) - x0, sigma, denoiser.sigma_data)
        return {"loss": error, "denoising": error.detach()}


class Mixture(Likelihood):
    """likelihood + denoising_weight · denoising, both in every step.

    Args:
        denoising_weight: of the denoising term.
        power: exponent of the likelihood's weight over σ.
    """

    def __init__(self, denoising_weight: float = 0.3, power: float = 0.5) -> None:
        super().__init__(power)
        self.denoising_weight = denoising_weight

    def __call__(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        labels: Tensor | None,
        sigma: Tensor,
        eps: Tensor,
        drop: Tensor | None = None,
    ) -> dict[str, Tensor]:
        assert isinstance(denoiser, ScoreFlow)
        score, log_prob = denoiser.score_and_log_prob(noised(x0, sigma, eps), sigma, labels, drop)
        nll = -log_prob / math.prod(denoiser.shape)
        error = score_matching_error(score, eps, sigma, denoiser.sigma_data)
        loss = self.weight(denoiser, sigma) * nll + self.denoising_weight * error
        return {"loss": loss, "nll": nll.detach(), "denoising": error.detach()}


def noised(x0: Tensor, sigma: Tensor, eps: Tensor) -> Tensor:
    """x = x0 + σε."""
    return x0 + sigma.reshape(-1, *([1] * (x0.dim() - 1))) * eps


def denoising_error(error: Tensor, sigma: Tensor, sigma_data: Tensor) -> Tensor:
    """λ(σ)·mean over coordinates of error², (B,), λ = (σ² + σ_data²)/(σ·σ_data)²."""
    weight = (sigma.square() + sigma_data.square()) / (sigma * sigma_data).square()
    return weight * error.square().flatten(1).mean(1)


def score_matching_error(score: Tensor, eps: Tensor, sigma: Tensor, sigma_data: Tensor) -> Tensor:
    """The same from a score: D − x0 = σ(ε + σs), without the cancellation of x + σ²s − x0 at low noise."""
    scaled = sigma.reshape(-1, *([1] * (eps.dim() - 1)))
    return denoising_error(scaled * (eps + scaled * score), sigma, sigma_data)
