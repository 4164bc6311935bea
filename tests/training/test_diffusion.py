"""What a training step says to the denoiser, and that a validation says nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch

from flowdiff.commands.train import train
from flowdiff.objectives import Loss
from tests.helpers.command_lines import BARE, Compose


def test_steps_perturb_the_model_and_validations_do_not(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[Any] = []
    validations: list[Any] = []
    original = Loss.__call__

    def call(self: Loss, denoiser: Any, *given: Any) -> dict[str, torch.Tensor]:
        (validations if len(given) == 4 else steps).append(given)
        return original(self, denoiser, *given)

    monkeypatch.setattr(Loss, "__call__", call)
    words = (*BARE, "trainer.max_steps=3", "trainer.val_check_interval=3")
    train(config(*words, "dropout=0.3", "label_dropout=0.5", "augment=affine", run_dir=tmp_path))
    assert len(steps) == 3 and validations
    for x0, _, _, _, perturbation, progress in steps:
        assert perturbation.dropout == 0.3 and perturbation.probes == "fresh"
        assert 0 < perturbation.drop.float().mean() < 1 and len(perturbation.drop) == len(x0)
        assert len(perturbation.shift) == len(x0) and perturbation.shift.requires_grad
        assert 0 <= progress < 1
