"""Metrics at each validation."""

from collections.abc import Mapping

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from flowdiff.metrics.base import Evaluand, Metric, measure
from flowdiff.model.construction import from_config
from flowdiff.training.diffusion import Diffusion


class ValidationMetrics(Callback):
    """Metrics of the averaged weights at each validation, on the validation split, logged as `val/<name>`.

    Args:
        metrics: from conf/metrics; how many samples each draws stands there.
    """

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        self.metrics = dict(metrics)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        from flowdiff.evaluation.measurement import SeededSampler

        assert isinstance(pl_module, Diffusion)
        denoiser, data, config = pl_module.denoiser, pl_module.data, pl_module.entry["config"]
        batched = from_config(denoiser, config, images=data.levels is not None)
        device = next(denoiser.parameters()).device
        sample, sigma = SeededSampler(batched), pl_module.request.sigma_min
        model = Evaluand(denoiser, data, sample=sample, sigma_min=sigma, device=device, split="val")
        results, skipped = measure(self.metrics, model)
        for name, reason in skipped.items():
            rank_zero_warn(f"{name} is not measured: {reason}")
        values = {f"val/{name}": result.value for name, result in results.items()}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        for name, value in values.items():
            print(f"step {trainer.global_step}: {name} {value:.4g}", flush=True)
