"""Who takes part in the benchmark: contenders.yaml."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from experiments.common import budget
from experiments.common.results import Contender, Result
from flowdiff.files import write_json

FILE = Path(__file__).with_name("contenders.yaml")
DATASETS = ("digits", "mnist")


@dataclass(frozen=True)
class PeerContender(Contender):
    """Another library's flow; its settings are its entry in contenders.yaml."""

    def run(self, folder: Path, limit: float) -> Result:
        """Train and measure it in a process of its own, see `experiments.benchmarks.fit`."""
        write_json(folder / "request.json", self.request, ensure_ascii=False)
        budget.run_module("experiments.benchmarks.fit", [str(folder)], folder / "run.log", limit)
        found = json.loads((folder / "result.json").read_text())
        assert isinstance(found, dict)
        return found


def contenders(dataset: str, seconds: float, seed: int, file: Path = FILE) -> list[Contender]:
    """Those of `file` that take part on a dataset."""
    table = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(table, dict)
    found = []
    for section, kind in (("flowdiff", "flowdiff"), ("baselines", "baseline")):
        for name, settings in (table.get(section) or {}).items():
            if isinstance(settings, dict):
                settings = settings.get(dataset)
            if settings is not None:
                found.append(Contender(name, kind, settings, dataset, seconds, seed))
    for name, entry in (table.get("peers") or {}).items():
        found.append(PeerContender(name, "peer", entry_on(dataset, entry), dataset, seconds, seed))
    return found


def entry_on(dataset: str, entry: dict[str, Any]) -> dict[str, Any]:
    """A peer's entry as it is on a dataset."""
    common = {key: value for key, value in entry.items() if key not in DATASETS}
    merged = OmegaConf.to_container(OmegaConf.merge(common, entry.get(dataset) or {}))
    assert isinstance(merged, dict)
    return {str(key): value for key, value in merged.items()}
