"""Training steps of one version of the code, at the command of `versions`, by lines of JSON.

Run by its path in the folder of a checkout, whose packages it imports, and whose version may be another than this
file's. A line asks for a model ({"name": …, "loss": …, "dataset": …}) or for some steps of it ({"steps": n}); answered
are the calls of ATen in a step (and the profiler's events of ATen, those within others too, in a loss and its
gradients), and the seconds of the process's CPU for a step.
"""

import importlib.util
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

Work = Callable[[], object]


class CallCounter(TorchDispatchMode):
    """As `experiments.common.counting.CallCounter`, which the other version may not have."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[str(func)] += 1
        return func(*args, **(kwargs or {}))


def load(name: str, file: Path) -> Any:
    """The module of a file."""
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def build_works(name: str, loss: str, dataset: str) -> tuple[Work, Work]:
    """A training step, and the loss with its gradients alone: by the functions of this file's version, or by those of a
    version before `flowdiff.commands`.

    Raises:
        ValueError: the latter knows digits only.
    """
    if Path("flowdiff", "commands").is_dir():
        models = load("speed_models", Path(__file__).with_name("models.py"))
        model = models.build_model(name, loss, dataset, torch.device("cpu"))
        return models.step_of(model, model.loss), models.gradients_of(model, model.loss)
    if dataset != "digits":
        raise ValueError("a version without flowdiff.commands is compared on digits")
    from experiments.compile.__main__ import model_and_batch

    denoiser, objective, batch = model_and_batch(name, loss, torch.device("cpu"))
    optimizer = torch.optim.AdamW(denoiser.parameters())  # as it was then

    def gradients() -> None:
        objective(denoiser, *batch)["loss"].mean().backward()

    def step() -> None:
        gradients()
        optimizer.step()
        optimizer.zero_grad()

    return step, gradients


def count_calls(work: Work) -> int:
    """As `experiments.common.counting.count_calls`."""
    with CallCounter() as counter:
        work()
    return counter.calls.total()


def count_events(work: Work) -> int:
    """As `experiments.common.counting.count_events`."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        work()
    return sum(event.name.startswith("aten::") for event in profiler.events())


def main() -> None:
    """Answer line by line."""
    torch.set_num_threads(1)
    sys.path.insert(0, ".")
    step: Work = lambda: None  # noqa: E731
    for line in sys.stdin:
        asked = json.loads(line)
        if "name" in asked:
            step, gradients = build_works(**asked)
            step()
            answer: dict[str, Any] = {"calls": count_calls(step), "events": count_events(gradients)}
        else:
            start = time.process_time()
            for _ in range(asked["steps"]):
                step()
            answer = {"seconds": (time.process_time() - start) / asked["steps"]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
