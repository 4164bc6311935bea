r"""What networks of diffusers that others have trained have in common: their noise levels and their folders.

Such a network was trained on x_t = √ᾱ_t x0 + √(1 − ᾱ_t) ε, t = 0 … T − 1. With σ_t = √((1 − ᾱ_t)/ᾱ_t) that is
x_t = x/√(σ_t² + 1), x = x0 + σ_t ε, as in diffusers' EulerDiscreteScheduler:

    t(σ)     = the linear interpolation of t in log σ_t, held to [0, T − 1]
    out      = network(x/√(σ² + 1), t(σ))
    D(x, σ)  = x − σ·out                             prediction_type epsilon
    D(x, σ)  = x/(σ² + 1) − σ/√(σ² + 1)·out          prediction_type v_prediction
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from flowdiff.data.statistics import DataStatistics
from flowdiff.denoisers.base import Denoiser, Sigma, batch_sigma
from flowdiff.denoisers.diffusers_unets import import_class
from flowdiff.errors import ConfigError, FlowdiffError, one_line
from flowdiff.nn.attention import attention_for
from flowdiff.tensors import per_sample

PREDICTIONS = ("epsilon", "v_prediction")


class ReadyMade(Denoiser):
    """D of a network that predicts ε or v at T noise levels, frozen. A subclass says why it is, and gives its network.

    Args:
        shape: of a sample.
        num_classes: K, 0 for none.
        prediction_type: one of `PREDICTIONS`.
        log_sigmas: log σ_t, (T,), ascending.
    """

    log_sigmas: Tensor

    def __init__(self, shape: tuple[int, ...], num_classes: int, prediction_type: str, log_sigmas: Tensor) -> None:
        super().__init__(shape, num_classes)
        self.prediction_type = prediction_type
        self.register_buffer("log_sigmas", log_sigmas, persistent=False)

    def fit(self, statistics: DataStatistics) -> None:
        raise FlowdiffError(self.frozen)

    def timestep(self, sigma: Tensor) -> Tensor:
        """t(σ), (B,) to (B,)."""
        table = self.log_sigmas
        log_sigma = sigma.to(table.dtype).log()
        low = (torch.searchsorted(table, log_sigma, right=True) - 1).clamp(0, len(table) - 2)
        share = (log_sigma - table[low]) / (table[low + 1] - table[low])
        return low + share.clamp(0, 1)

    def estimate(self, x: Tensor, sigma: Sigma, network: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """D(x, σ), shape of x.

        Args:
            x: (B, *shape).
            sigma: (B,), or one number for all.
            network: of x/√(σ² + 1) and t(σ), (B,).
        """
        levels = batch_sigma(sigma, x)
        t = self.timestep(levels)
        levels = per_sample(levels, x)
        total = (levels.square() + 1).sqrt()
        with attention_for(False, x):
            out = network(x / total, t).to(x.dtype)
        if self.prediction_type == "epsilon":
            return x - levels * out
        return x / total.square() - levels / total * out


class Folder:
    """A folder that diffusers has written. Each part is read as the class that belongs there, whatever it names.

    Args:
        given: as it was given.
        path: the folder, or a name on the hub.
    """

    weights: tuple[str, ...] = ("unet",)

    def __init__(self, given: str, path: str) -> None:
        self.given, self.path = given, path

    def refuse(self, allowed: str) -> ConfigError:
        """The error that says what is wrong with it."""
        return ConfigError("denoiser.path", self.given, allowed)

    @contextmanager
    def explain_reading(self, part: str) -> Iterator[None]:
        """Within it an error is one line that names the part."""
        try:
            yield
        except FlowdiffError:
            raise
        except Exception as error:  # diffusers, transformers, huggingface_hub and safetensors each have their own
            only = " (of weights only safetensors are)" if part in self.weights else ""
            message = f"its {part} can't be read{only}; {type(error).__name__}: {one_line(error, 200)}"
            raise self.refuse(message) from error

    def scheduler(self, subfolder: str | None = "scheduler") -> tuple[str, Tensor]:
        """The prediction_type, and log σ_t (T,), ascending."""
        with self.explain_reading("scheduler"):
            return self.levels(import_class("EulerDiscreteScheduler").load_config(self.path, subfolder=subfolder))

    def levels(self, config: Mapping[str, Any]) -> tuple[str, Tensor]:
        """The prediction_type, and log σ_t (T,), ascending, of a scheduler's configuration."""
        if not {"beta_schedule", "trained_betas"} & set(config) or config.get("timestep_type") == "continuous":
            raise self.refuse(f"its scheduler {config.get('_class_name')} has no discrete noise levels of betas")
        euler = import_class("EulerDiscreteScheduler").from_config(config)
        kind = str(euler.config.prediction_type)
        if kind not in PREDICTIONS:
            raise self.refuse(f"its prediction_type {kind} is none of {', '.join(PREDICTIONS)}")
        return kind, ((1 - euler.alphas_cumprod) / euler.alphas_cumprod).sqrt().log()
