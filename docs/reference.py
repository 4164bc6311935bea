"""The configuration reference, from conf/ and the signatures behind it, and API pages.   python -m docs.reference

Written to docs/configuration/reference.md and docs/api/, which a test holds to what this module makes. What a key means
is the comment beside it in its YAML file, what it may be is what the class's signature, or the command's request,
allows. A page of the API names the modules of a wing, whose docstrings mkdocstrings reads.
"""

import ast
import importlib
import itertools
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from flowdiff.commands.samples import SampleRequest
from flowdiff.errors import one_line
from flowdiff.evaluation.request import EvaluateRequest
from flowdiff.model.requests import CheckpointRequest, DrawRequest, ExportRequest
from flowdiff.model.vocabulary import config_dir, content_of, files_of
from flowdiff.options import options_of, problem
from flowdiff.training.request import TrainerOptions, TrainRequest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "configuration" / "reference.md"
#: The files of the commands, and what they are asked for.
COMMANDS: Mapping[str, tuple[str, type]] = {
    "config": ("train", TrainRequest),
    "checkpoint": ("sample, evaluate, export", CheckpointRequest),
    "draw": ("sample, evaluate", DrawRequest),
    "sample": ("sample", SampleRequest),
    "evaluate": ("evaluate", EvaluateRequest),
    "export": ("export", ExportRequest),
}
OF_THE_WHOLE = ("experiment", "debug")  # groups whose files set keys of other groups
HEADER = "| key | value | allowed | |\n| --- | --- | --- | --- |"
INTRODUCTION = """# Configuration reference

Every group, choice and key of `conf/`, made by `python -m docs.reference`. A value `${key}` is that key's; where the
third column is empty, a key is held to what the class behind it accepts. What each group decides is said in
[Groups](groups.md). `python -m flowdiff.train --help` has the same lists, with those of your own `--config-dir`.
"""


class Key(NamedTuple):
    """A line of the reference."""

    name: str
    value: Any
    allowed: str
    comment: str

    def __str__(self) -> str:
        cells = (f"`{self.name}`", f"`{written(self.value)}`", escaped(self.allowed), escaped(self.comment))
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def escaped(text: str) -> str:
    """Text of which Markdown makes nothing else."""
    return re.sub(r"[\\*<\[]", r"\\\g<0>", text)


def written(value: Any) -> str:
    """A value as YAML in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    return text.removesuffix("\n").removesuffix("...").strip()


def allowed(annotation: Any) -> str:
    """What an annotation allows, in words; nothing where it allows all, or what is built from a node."""
    return (problem(object(), annotation) or "").removeprefix("must be ")


def comments(file: Path) -> dict[str, str]:
    """What stands beside each key of a YAML file, by the key's whole name."""
    found: dict[str, str] = {}
    above: list[tuple[int, str]] = []  # indentation and name of the keys around
    for line in file.read_text(encoding="utf-8").splitlines():
        key = re.match(r"( *)([\w.]+):(?:[^#'\"]|'[^']*'|\"[^\"]*\"|\S#)*?(?:\s#\s*(.*))?$", line)
        if key:
            indent = len(key[1])
            above = [*(outer for outer in above if outer[0] < indent), (indent, key[2])]
            found[".".join(name for _, name in above)] = key[3] or ""
        elif re.match(r"\s{4,}#", line) and above:  # a comment goes on
            name = ".".join(name for _, name in above)
            found[name] = f"{found[name]} {line.strip().lstrip('# ')}".strip()
    return found


def head(file: Path) -> str:
    """The comment that a file begins with, as Markdown."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), file.read_text(encoding="utf-8").splitlines())
    return escaped(one_line(" ".join(line.lstrip("#") for line in lines if "@package" not in line), 1000))


def find(target: str) -> Any:
    """What a `_target_` names."""
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def options(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """The annotations of the keys of a node."""
    target = node.get("_target_")
    if target == "lightning.pytorch.Trainer":
        return hints(TrainerOptions)
    return options_of(find(target)) if target else {}


def keys(node: Mapping[str, Any], said: Mapping[str, str], prefix: str = "", inside: str = "") -> Iterator[Key]:
    """The keys of a node and of the nodes in it.

    Args:
        node: of a YAML file.
        said: its `comments`.
        prefix: what the node is called on the command line.
        inside: where in the file it stands.
    """
    annotations = options(node)
    for name, value in node.items():
        if name in ("_target_", "_partial_", "defaults"):
            continue
        place, key = f"{inside}.{name}".lstrip("."), f"{prefix}.{name}".lstrip(".")
        if isinstance(value, Mapping):
            if "_target_" in value:
                yield Key(key, value["_target_"], "", said.get(place, ""))
            yield from keys(value, said, key, place)
        else:
            yield Key(key, value, allowed(annotations.get(name, Any)), said.get(place, ""))


def hints(request: type) -> dict[str, Any]:
    """The annotations of what a command is asked for."""
    return typing.get_type_hints(request, include_extras=True)


def table(lines: Iterable[Key], known: Mapping[str, Any] | None = None) -> str:
    """The keys as Markdown; nothing where there are none.

    Args:
        lines: the keys.
        known: annotations of whole keys, for those whose class says nothing; None: those of a training.
    """
    if known is None:
        known = hints(TrainRequest) | {f"trainer.{key}": hint for key, hint in hints(TrainerOptions).items()}
    rows = [key._replace(allowed=key.allowed or allowed(known.get(key.name, Any))) for key in lines]
    return "\n".join(["", HEADER, *map(str, rows), ""]) if rows else ""


def chosen(defaults: list[Any], group: str = "") -> list[tuple[str, Any]]:
    """Groups and the choices of them that a list of defaults makes, in a file of `group`."""
    found = []
    for entry in defaults:
        if isinstance(entry, Mapping):
            found += [
                (key.removeprefix("override ").lstrip("/").partition("@")[0], each) for key, each in entry.items()
            ]
        elif entry.startswith("/"):
            path, _, choice = entry.lstrip("/").partition("@")[0].partition("/")
            found.append((path, choice))
        elif entry != "_self_":
            found.append((group, entry))
    return found


def choice_section(group: str, name: str, file: Path) -> str:
    """A choice of a group."""
    content = content_of(file) or {}
    target = content.get("_target_")
    summary = one_line((find(target).__doc__ or "").split("\n\n")[0], 1000) if target else ""
    built = f"`{target}`" + (f": {escaped(summary)}" if summary else "")
    begins = ", ".join(f"`{of}={written(one)}`" for of, one in chosen(content.get("defaults", []), group))
    paragraphs = [
        f"### `{group}={name}`",
        head(file),
        built if target else "",
        f"Begins with {begins}." if begins else "",
    ]
    lines = keys(content, comments(file), "" if group in OF_THE_WHOLE else group)
    return "\n\n".join(filter(None, paragraphs)) + "\n" + table(lines)


def command_section(name: str) -> str:
    """The keys of a command's own file."""
    commands, request = COMMANDS[name]
    file = config_dir() / f"{name}.yaml"
    content = {key: value for key, value in content_of(file).items() if key != "hydra"}
    lines = keys(content, comments(file))
    return f"## Keys of {commands}\n\n`conf/{name}.yaml`: {head(file)}\n{table(lines, hints(request))}"


def groups() -> list[str]:
    """The groups of conf/, but Hydra's own."""
    return sorted(folder.name for folder in config_dir().iterdir() if folder.is_dir() and folder.name != "hydra")


def page() -> str:
    """The whole reference."""
    first = content_of(config_dir() / "config.yaml")["defaults"]
    default = dict(chosen(first) + chosen(content_of(files_of("experiment")["digits"])["defaults"]))
    sections = [INTRODUCTION, *(command_section(name) for name in COMMANDS)]
    for group in groups():
        taken = f"\n\n`python -m flowdiff.train` takes `{group}={written(default[group])}`." if group in default else ""
        sections.append(f"## `{group}`{taken}\n")
        sections += [choice_section(group, name, file) for name, file in files_of(group).items()]
    return "\n".join(section.strip("\n") + "\n" for section in sections)


def api_pages() -> dict[Path, str]:
    """The page of each wing: what it says of itself, and its modules."""
    pages = {}
    for first in sorted(ROOT.glob("flowdiff/*/__init__.py")):
        modules = sorted(file for file in first.parent.rglob("*.py") if file.name != "__init__.py")
        names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in modules]
        said = ast.get_docstring(ast.parse(first.read_text(encoding="utf-8"))) or ""
        sections = [f"# flowdiff.{first.parent.name}", said, *(f"::: {name}" for name in names)]
        pages[ROOT / "docs" / "api" / f"{first.parent.name}.md"] = "\n\n".join(sections) + "\n"
    return pages


if __name__ == "__main__":
    for file, text in {PAGE: page(), **api_pages()}.items():
        file.write_text(text, encoding="utf-8")
