"""A search by hydra/sweeper=optuna: the number that a job gives back.

    python -m flowdiff.train --multirun experiment=search

It is the metric that `optimized_metric` names, of those in the job's metrics.json. A job that diverged, whose loss or
metric became NaN or infinite, counts as +∞ where the metric is minimised and −∞ where it is maximised
(`hydra.sweeper.direction`): the search goes on and keeps away from it. Any other failure, a mistake as a rule, ends
the search, unless `hydra.sweeper.max_failure_rate` allows it.

A search whose sampler has a seed is the same each time. Therefore `resume_sweep=true` needs no data base: the jobs
that are done give back what they had measured, and the search goes on as if it had not been interrupted.
"""

import contextlib
import math
from collections.abc import Mapping
from typing import Any

from hydra.utils import get_class

from flowdiff.errors import ConfigError

KEY = "optimized_metric"


def searches(hydra_cfg: Any) -> bool:
    """Whether the sweeper waits for a number of each job; Hydra's own only goes through a list."""
    return "Basic" not in str(hydra_cfg.sweeper.get("_target_"))


def objective(name: str, metrics: Mapping[str, float | None], sweeper: Any) -> float:
    """The job's value of the metric that is searched for; the worst one where it isn't finite.

    Raises:
        ConfigError: it isn't among the metrics.
    """
    if name not in metrics:
        raise ConfigError(KEY, name, f"was not measured; must be one of {', '.join(sorted(metrics)) or 'none'}")
    value = metrics[name]
    return worst_value(sweeper) if value is None or not math.isfinite(value) else value


def check(name: str, config: Mapping[str, Any], sweeper: Any) -> None:
    """Refuse to search for the worst: a direction that contradicts what the metric says of itself.

    Args:
        name: of the metric that is searched for; one that says nothing may be searched for in both ways.
        config: the group metrics, whose classes may come from elsewhere.
        sweeper: Hydra's configuration of it.

    Raises:
        ConfigError: it does.
    """
    from flowdiff.metrics.base import list_quantities  # torch comes with it

    for entry in config.values():
        with contextlib.suppress(Exception):  # one that isn't there is said where it is made
            get_class(str(entry["_target_"]))  # a class that is imported can be asked
    said = next((quantity.better for quantity in list_quantities() if quantity.covers(name)), None)
    wanted = "higher" if math.isinf(worst_value(sweeper)) and worst_value(sweeper) < 0 else "lower"
    if said is not None and said != wanted:
        given, right = ("maximize", "minimize") if wanted == "higher" else ("minimize", "maximize")
        better = f"{said} is better of {KEY}={name}: hydra.sweeper.direction={right}"
        raise ConfigError("hydra.sweeper.direction", given, better)


def worst_value(sweeper: Any) -> float:
    """What a job that diverged gives back."""
    direction = sweeper.get("direction", "minimize")  # a word or an enum of the plugin's
    return -math.inf if str(getattr(direction, "name", direction)) == "maximize" else math.inf
