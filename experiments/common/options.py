"""The options of the benchmarks' command lines."""

import argparse
from pathlib import Path


def benchmark_parser(module: str, description: str | None, seconds: float, out: Path) -> argparse.ArgumentParser:
    """The options that every benchmark has; `seconds` and `out` are their defaults."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--seconds", type=float, default=seconds, help="of training, for each")
    parser.add_argument("--out", "-o", type=Path, default=out, help="takes the results")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def contest_parser(module: str, description: str | None, out: Path, runs: Path) -> argparse.ArgumentParser:
    """The options of a benchmark whose contenders are trained for minutes."""
    parser = benchmark_parser(module, description, 120.0, out)
    parser.add_argument("--models", help="some of them, with commas (default: all)")
    parser.add_argument("--again", action="store_true", help="measure what is there already once more")
    parser.add_argument("--runs", type=Path, default=runs, help="takes the run folders")
    return parser
