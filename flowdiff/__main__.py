"""One command for all of them.   flowdiff train flow.n_flows=5

`flowdiff NAME …` and `python -m flowdiff NAME …` are `python -m flowdiff.NAME …`: the same module, run as the same
program, so that whatever it starts (a launcher's workers, the other processes of a run) starts that module too.
"""

import ast
import runpy
import sys
from pathlib import Path

from flowdiff.errors import one_line, suggest
from flowdiff.runs import interrupts
from flowdiff.version import __version__

COMMANDS = ("train", "sample", "evaluate", "export", "collect", "report", "dashboard")
USAGE = 2  # the exit code of what isn't understood, argparse's too


def main() -> None:
    """Run the command that the first word names; without one, print what each is for, with an example."""
    interrupts.end_quietly()  # until the command itself takes the signals
    name, *words = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        _run(name, words)
    elif name in ("-sc", "--shell-completion"):
        _run("train", [name, *words])  # which has the rules for the whole program
    elif name == "--version":
        print(f"flowdiff {__version__}")
    elif name in ("-h", "--help"):
        print(*map(_describe, COMMANDS), sep="\n")
        print("Each says more with --help. flowdiff NAME is python -m flowdiff.NAME.")
    else:
        allowed = f"must be one of {', '.join(COMMANDS)}, --help, --version"
        print(f"{one_line(name, 200)}: {allowed}{suggest(name, COMMANDS, 'flowdiff ')}", file=sys.stderr)
        sys.exit(USAGE)


def _run(name: str, words: list[str]) -> None:
    sys.argv[1:] = words
    runpy.run_module(f"flowdiff.{name}", run_name="__main__", alter_sys=True)


def _describe(name: str) -> str:
    """The first line of a command's module, which is not imported: that takes half a second."""
    tree = ast.parse(Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or name).splitlines()[0]


if __name__ == "__main__":
    main()
