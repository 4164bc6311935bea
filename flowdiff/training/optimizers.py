r"""The optimisers of conf/optimizer. Each is made of a module, the learning rate and the weight decay:

    adamw   AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101), fused
    muon    AdamW, but for matrices G (A, B) of gradients of linear layers and convolutions (output, all the rest):

                M ← μM + (1 − μ)G,    W ← (1 − ηλ)W − 0.2·√max(A, B)·η · orthogonal(μM + (1 − μ)G)

            (Jordan et al. 2024, kellerjordan.github.io/posts/muon), η the learning rate, λ the weight decay. A step has
            the root mean square of AdamW's, 0.2·η (Liu et al. 2025, arXiv:2502.16982): one η serves both.

A class of one's own takes the same three, is an `Optimizer` with one group of parameters, and keeps of each of them
tensors alone, which a checkpoint holds.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from flowdiff.options import Length, Range, checked

Decay = Annotated[float, Range(0, 1, below=True)]
"""Of a moving average in each step."""
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
STEPS = 5
TOGETHER = 1 << 18  # numbers of matrices of one shape that are made orthogonal at once


class AdamW(torch.optim.AdamW):
    """torch's, in fused kernels.

    Args:
        module: whose parameters are optimised.
        lr, weight_decay: η and λ.
        betas: of the averages of gradients and of their squares.
    """

    needs_whole = False  # weights, where processes have shares of them

    @checked
    def __init__(
        self,
        module: nn.Module,
        lr: float,
        weight_decay: float,
        betas: Annotated[Sequence[Decay], Length(2, 2)] = (0.9, 0.999),
    ) -> None:
        first, second = betas
        super().__init__(module.parameters(), lr, (first, second), weight_decay=weight_decay, fused=True)
        self._step_supports_amp_scaling = False  # of a scaled loss gradients are clipped as they are without a scale

    def keeps(self, weight: Tensor) -> dict[str, torch.Size]:
        """The names and shapes of what is kept of a weight from step to step."""
        return {"step": torch.Size(), "exp_avg": weight.shape, "exp_avg_sq": weight.shape}

    def fits(self, weight: Tensor) -> bool:
        """Whether what is there of a weight, restored, is what is kept."""
        state = self.state[weight]
        tensors = {n: each for n, each in state.items() if isinstance(each, Tensor) and each.is_floating_point()}
        return state.keys() == tensors.keys() and {n: each.shape for n, each in tensors.items()} == self.keeps(weight)


class Muon(AdamW):
    """Steps of orthogonal matrices for the weights of linear layers and convolutions, AdamW for all others.

    torch's own Muon takes one matrix at a time, and no convolutions.

    Args:
        module, lr, weight_decay, betas: as of AdamW.
        momentum: μ.
    """

    needs_whole = True

    @checked
    def __init__(
        self,
        module: nn.Module,
        lr: float,
        weight_decay: float,
        betas: Annotated[Sequence[Decay], Length(2, 2)] = (0.9, 0.999),
        momentum: Decay = 0.95,
    ) -> None:
        super().__init__(module, lr, weight_decay, betas)
        self.momentum = momentum
        layers = [each for each in module.modules() if isinstance(each, LAYERS)]
        self.matrices = {each.weight: None for each in layers if isinstance(each.weight, nn.Parameter)}

    def keeps(self, weight: Tensor) -> dict[str, torch.Size]:
        return {"momentum": weight.shape} if weight in self.matrices else super().keeps(weight)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Adam's own looks for its moments in every parameter's state."""
        torch.optim.Optimizer.__setstate__(self, state)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all parameters that have a gradient; what the closure gives."""
        with torch.enable_grad():
            outcome = None if closure is None else closure()
        gradients = {weight: weight.grad for weight in self.matrices if weight.grad is not None}
        for weight in gradients:
            weight.grad = None  # AdamW leaves it out
        super().step()
        for weight, gradient in gradients.items():
            weight.grad = gradient
        if gradients:
            self._turn(list(gradients), list(gradients.values()))
        return outcome

    def _turn(self, weights: list[nn.Parameter], gradients: list[Tensor]) -> None:
        (group,) = self.param_groups
        lr, decay = float(group["lr"]), float(group["weight_decay"])
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        averages = [self.state[weight]["momentum"] for weight in weights]
        torch._foreach_lerp_(averages, gradients, 1 - self.momentum)
        directions = torch._foreach_lerp(gradients, averages, self.momentum)
        torch._foreach_mul_([*weights], 1 - lr * decay)
        of_shape = defaultdict(list)
        for weight, direction in zip(weights, directions, strict=True):
            of_shape[direction.flatten(1).shape].append((weight, direction.flatten(1)))
        for shape, pairs in of_shape.items():
            count = max(1, TOGETHER // shape.numel())
            for part in (pairs[i : i + count] for i in range(0, len(pairs), count)):
                turned = orthogonal(torch.stack([direction for _, direction in part])).to(part[0][0].dtype)
                steps = [each.view_as(weight) for (weight, _), each in zip(part, turned, strict=True)]
                torch._foreach_add_([weight for weight, _ in part], steps, alpha=-0.2 * math.sqrt(max(shape)) * lr)


LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def orthogonal(matrices: Tensor) -> Tensor:
    """U·Vᵀ of UΣVᵀ, roughly: singular values between 0.7 and 1.2, by five Newton–Schulz steps in bfloat16.

    Args:
        matrices: (N, A, B), each for itself.
    """
    a, b, c = NEWTON_SCHULZ
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if is_tall else matrices).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x
