"""What the sweep varies that runs the present job, as far as Hydra knows, and a folder's name that tells it."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from flowdiff.runs.swept_words import varied


def swept_keys() -> dict[str, list[str]]:
    """The keys that this job's sweep varies and their values, as they are typed; {} where there is no sweep.

    They stand in the sweep's multirun.yaml (`commands.sweeps.Record`) and in an experiment's `hydra.sweeper.params`.
    No values: they can't be listed (an interval).
    """
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return {}
    hydra = HydraConfig.get()
    words = [f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items()]
    file = Path(hydra.runtime.cwd, hydra.sweep.dir, "multirun.yaml")
    return varied([*words, *(OmegaConf.load(file).hydra.overrides.task if file.is_file() else [])])
