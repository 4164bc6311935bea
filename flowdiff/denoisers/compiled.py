r"""Denoisers by torch.compile: D, score and log-density, or log-density alone, of tiles of one size as one graph.

A graph is made of a function and of the structure of the denoiser that it is called with, which is an argument: the
graph holds no weights, and a denoiser of the same structure uses it again. σ is a tensor: a number would be part of
the graph. The score is a torch.func.grad inside the graph. What torch.compile makes stays on disk
(`denoisers.compiler_cache`), so that a second start needs seconds.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from flowdiff.denoisers import compiler_cache, wrappers
from flowdiff.denoisers.base import Sigma, batch_sigma
from flowdiff.denoisers.wrappers import Wrapper
from flowdiff.errors import ConfigError, one_line

BACKEND: str | Callable[..., Any] = "inductor"  # of torch.compile

Given = ParamSpec("Given")
Found = TypeVar("Found")


def compile_function(function: Callable[Given, Found]) -> Callable[Given, Found]:
    """A function as one graph for each shape of its arguments, that of an earlier run if it is still on disk."""
    if BACKEND != "inductor":
        return torch.compile(function, backend=BACKEND, dynamic=False)
    mend_cache()
    # the choice of a kernel for attention, whose arguments stand in the graph: it keeps no graph from being found again
    choice = ("_sdpa_kernel", "_backend_from_string")
    options: Any = {"unsafe_marked_cacheable_functions": {f"torch.nn.attention.{name}": "1" for name in choice}}
    return torch.compile(function, dynamic=False, options=options)


def check_compilable(denoiser: Any) -> None:
    """Raise a `ConfigError` if the denoiser says why it can't be one graph."""
    reason = getattr(denoiser, "uncompilable", None)
    if reason:
        raise ConfigError("compile", "true", f"{reason}: use compile=false")


def check_compiler(device: str) -> None:
    """Compile one addition, so that a missing compiler is said before anything else happens; mend what is on disk.

    Args:
        device: kind of the device that the functions will run on, "cpu" or "cuda".

    Raises:
        ConfigError: it can't be compiled.
    """
    if BACKEND != "inductor":
        return
    mend_cache()
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(8, device=device))
    except Exception as error:
        needed = "needs a C++ compiler (g++ or clang++, or its path in CXX)" if device == "cpu" else "needs Triton"
        raise ConfigError("compile", "true", f"{needed}, or use compile=false: {one_line(error, 200)}") from error


def mend_cache() -> None:
    """Remove what a run that was killed has left in parts on disk, and say so."""
    broken = compiler_cache.remove_broken()
    if broken:
        files = "1 file" if len(broken) == 1 else f"{len(broken)} files"
        print(f"compile: {files} in {broken[0].parents[1]} were cut short, and are made anew", flush=True)


class Compiled(Wrapper):
    """A denoiser whose D, score and log-density are compiled; its inverse, a search, runs as it is written.

    Args:
        denoiser: what is sampled.

    Raises:
        ConfigError: it can't be one graph.
    """

    def __init__(self, denoiser: Any) -> None:
        super().__init__(denoiser)
        check_compilable(denoiser)

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return _compiled("denoise", BACKEND)(self.denoiser, x, sigma, labels)

    def score_and_log_prob(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return _compiled("score_and_log_prob", BACKEND)(self.denoiser, x, sigma, labels)

    @torch.no_grad()
    def log_prob(self, x: Tensor, sigma: Sigma, labels: Tensor | None = None) -> Tensor:
        """log p(x; σ, c) in nats, (B,), without a gradient: another graph for another B."""
        return _compiled("log_prob", BACKEND)(self.denoiser, x, batch_sigma(sigma, x).contiguous(), labels)


def _denoise(denoiser: Any, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
    return denoiser(x, sigma, labels)


def _log_prob(denoiser: Any, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
    return denoiser.log_prob(x, sigma, labels)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "denoise": _denoise,
    "score_and_log_prob": wrappers.score_and_log_prob,
    "log_prob": _log_prob,
}


@functools.cache
def _compiled(name: str, backend: str | Callable[..., Any]) -> Callable[..., Any]:
    """One of the functions, compiled: once in a process, since graphs belong to a function."""
    return compile_function(FUNCTIONS[name])
