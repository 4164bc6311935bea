"""The commands that there are.   python -m flowdiff"""

from importlib import import_module

COMMANDS = ("train", "sample", "evaluate", "export", "collect", "report", "dashboard")


def main() -> None:
    """Print what each is for, with an example."""
    for name in COMMANDS:
        print((import_module(f"flowdiff.{name}").__doc__ or name).splitlines()[0])
    print("Each says more with --help.")


if __name__ == "__main__":
    main()
