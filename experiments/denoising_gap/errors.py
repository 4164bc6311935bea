"""Models at full budget: how well they denoise the images that they were trained on, and those of the test split."""

from dataclasses import dataclass
from pathlib import Path

import torch

from experiments.common.results import Contender, Result
from experiments.denoising_gap.arms import SIGMAS
from experiments.denoising_gap.truths import UNET, UNET_STEPS, digits, trained
from flowdiff.metrics.base import Evaluand
from flowdiff.metrics.denoising import Denoising

SPLITS = ("train", "test")
COUPLING = ("flow=coupling", "base=normal", "trainer.max_steps=1600", "trainer.val_check_interval=400")
SETTINGS = {
    "unet": [*UNET, *UNET_STEPS],
    "coupling": [*COUPLING, "callbacks=minimal"],
    "default": ["callbacks=minimal"],
    "jet": ["flow=jet", "trainer.max_steps=1800", "trainer.val_check_interval=450", "callbacks=minimal"],
}


@dataclass(frozen=True)
class Errors(Contender):
    """A run of the command line (`settings`), trained where it isn't there, measured on both splits."""

    @classmethod
    def of(cls, name: str, seed: int) -> "Errors":
        """One of SETTINGS."""
        return cls(name, "digits", SETTINGS[name], "digits", 0.0, seed)

    def run(self, folder: Path, limit: float) -> Result:
        """`denoising_ratio` by split; `folder` and `limit` aren't used."""
        run, data = Path("outputs/denoising_gap") / self.name, digits()
        model = trained([*self.settings, f"seed={self.seed}"], run)
        statistics, metric = data.statistics(data.num_classes), Denoising(SIGMAS)
        found = {}
        with torch.no_grad():
            for split in SPLITS:
                results = metric(Evaluand(model.denoiser, data, statistics, split=split))
                found[split] = {key: result.to_json() for key, result in results.items()}
        return found
