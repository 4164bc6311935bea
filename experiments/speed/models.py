"""A model with random weights, its loss and one batch; what a training step of it is.

Nothing of `experiments` is imported here: `worker` runs this file in a checkout of another version too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowdiff.commands.train import request_of
from flowdiff.data.base import read_data
from flowdiff.denoisers.base import UNPERTURBED, Denoiser
from flowdiff.model.construction import build
from flowdiff.runs.words import is_typed
from flowdiff.training.building import seed_all

UNETS = ("unet", "unet_diffusers")  # their loss is denoising
Work = Callable[[], object]
Terms = Callable[..., dict[str, Tensor]]


@dataclass
class Model:
    """A denoiser, its training objective, and the arguments of the latter: x0, labels, σ, ε, perturbation, progress.

    Attributes:
        noised: x = x0 + σ ε.
    """

    name: str
    loss_name: str
    denoiser: Any
    loss: Any
    batch: tuple[Any, ...]
    noised: Tensor

    def log_prob(self) -> Tensor:
        """log p of the noised batch, without a tape."""
        with torch.no_grad():
            return self.denoiser.log_prob(self.noised, self.batch[2], self.batch[1])

    def score(self) -> Tensor:
        """The score of the noised batch, without a tape."""
        with torch.no_grad():
            return self.denoiser.score(self.noised, self.batch[2], self.batch[1])


def build_model(name: str, loss: str, dataset: str, device: torch.device, *more: str) -> Model:
    """A choice of conf/flow, or a U-Net of conf/denoiser, on one batch of the experiment's own size.

    Args:
        name: of the flow or U-Net.
        loss: a choice of conf/loss.
        dataset: an experiment of this name is used.
        device: where it is measured.
        more: words of the command line. Without a base among them it is normal: what is measured is the flow.
    """
    words = [f"experiment={dataset}", f"loss={loss}", "run_dir=.", *more]
    words += [f"denoiser={name}"] if name in UNETS else [f"flow={name}"]
    words += [] if is_typed("base", more) else ["base=normal"]
    request = request_of(*words)
    seed_all(0)
    data = read_data(build(request.dataset))
    denoiser = build(request.denoiser, Denoiser, shape=list(data.shape), num_classes=data.num_classes)
    denoiser.fit(data.statistics(denoiser.num_classes))
    denoiser.to(device)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    k, labels = next(iter(data.batches("train")))
    x0 = data.to_model(k)
    sigma, eps = build(request.noise)(len(x0), x0.device), torch.randn_like(x0)
    noised = x0 + sigma.view(-1, *[1] * (x0.dim() - 1)) * eps
    tensors = [t.to(device) for t in (x0, labels, sigma, eps)]
    batch = (*tensors, UNPERTURBED, torch.tensor(1.0, device=device))
    return Model(name, loss, denoiser, build(request.loss), batch, noised.to(device))


def gradients_of(model: Model, terms: Terms) -> Work:
    """The mean loss, and its gradients by the weights, added to those that are there."""
    return lambda: terms(model.denoiser, *model.batch)["loss"].mean().backward()


def step_of(model: Model, terms: Terms) -> Work:
    """Loss, gradients and AdamW."""
    optimizer = torch.optim.AdamW(model.denoiser.parameters(), fused=True)
    gradients = gradients_of(model, terms)

    def step() -> None:
        gradients()
        optimizer.step()
        optimizer.zero_grad()

    return step
