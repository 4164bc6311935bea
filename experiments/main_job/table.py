"""The README's table from the recorded metrics.json files.   python -m experiments.main_job.table

Each file in results/ is the metrics.json of one run; its name is the row's.
"""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SIGMAS = ("0.05", "0.2", "1", "5")
Entries = dict[str, dict[str, Any]]


def value(entries: Entries, key: str, digits: int = 3) -> str:
    """A metric as text; a dash where it was not measured."""
    number = entries.get(key, {}).get("value")
    return "–" if number is None else f"{number:.{digits}g}"


def row(name: str, entries: Entries) -> str:
    """One row of the table."""
    fd = next((key for key in entries if key.startswith("fd_") and not key.endswith("/real")), "")
    samples = entries.get(fd, {})
    how = f"{samples['sampler']}, NFE {samples['nfe']:g}, n = {samples['n']:,}" if samples else "–"
    ratios = " / ".join(value(entries, f"denoising_ratio/{sigma}") for sigma in SIGMAS)
    distance = f"{value(entries, fd)} ({value(entries, fd + '/real')})" if fd else "–"
    recognised = entries.get("recognised", {}).get("value")
    share = "–" if recognised is None else f"{100 * recognised:.1f} %"
    return f"| {name} | {value(entries, 'bits_per_dim', 4)} | {ratios} | {distance} | {share} | {how} |"


def main() -> None:
    """Print the table."""
    print("| model | bits/dim | D | FD (real) | recognised | samples |")
    print("|---|---|---|---|---|---|")
    for file in sorted(RESULTS.glob("*.json")):
        entries = json.loads(file.read_text())
        if "bits_per_dim" in entries or "recognised" in entries:
            print(row(file.stem.replace("_", " "), entries))


if __name__ == "__main__":
    main()
