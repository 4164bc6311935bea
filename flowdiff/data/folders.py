"""A folder of pictures as people have them: which files are pictures, of which classes, and what is left out.

Classes are the subfolders, in natural order (2 before 10); a picture is of the class in whose folder it lies, however
deep. Links are followed, unless they lead back. Hidden files and folders, and those that systems leave behind, are
skipped without a word; other files that are no pictures by their suffix are counted.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flowdiff.data.pictures import suffixes
from flowdiff.errors import ConfigError, FlowdiffError

#: What systems and programs leave in people's folders, in lower case.
LEFT_BEHIND = frozenset(
    ("__macosx", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "$recycle.bin", "#recycle")
    + ("system volume information", "@eadir", "lost+found")
)
SPLITS = frozenset(("train", "training", "val", "valid", "validation", "dev", "test", "testing"))
SHOWN = 20  # names in one line


@dataclass
class Found:
    """The pictures below a folder.

    Attributes:
        files: each with the number of its class, 0 where there are no classes.
        classes: their names; empty where the pictures lie in the folder itself.
        left_out: how many files there are of each suffix that is no picture's.
        empty: subfolders without a picture.
        by_table: whether a table names the classes (`data.picture_tables`).
        said: what is to be said of that table.
    """

    files: list[tuple[Path, int]] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    empty: list[str] = field(default_factory=list)
    by_table: bool = False
    said: list[str] = field(default_factory=list)


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """A key to sort names by: runs of digits count as numbers."""
    parts = re.split(r"(\d{1,4000})", unicodedata.normalize("NFC", name).casefold())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part], name


def clean_name(name: str) -> str:
    """A name as it can be printed, compared and stored: composed, without control characters and broken bytes."""
    whole = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "\ufffd" for c in unicodedata.normalize("NFC", whole))


def list_names(names: Sequence[str], most: int = SHOWN) -> str:
    """The names with commas between them, the middle of many left out."""
    if len(names) <= most:
        return ", ".join(names)
    return ", ".join([*names[: most - 1], f"… ({len(names) - most} more)", names[-1]])


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is none of the user's."""
    return name.startswith(".") or name.casefold() in LEFT_BEHIND


def scan(root: Path) -> Found:
    """All pictures below a folder.

    Raises:
        FlowdiffError: a folder can't be listed, a picture is no regular file or lies beside the folders of classes,
            two classes have one name, or the subfolders are splits and not classes.
    """
    found = Found()
    top, loose = entries(root), []
    for entry in top:
        if not entry.is_dir():
            loose += [entry] if is_picture(entry, found.left_out) else []
        elif not _leads_back(entry, root):
            pictures = [path for path in files_below(entry, root) if is_picture(path, found.left_out)]
            if pictures:
                found.files += [(path, len(found.classes)) for path in pictures]
                found.classes.append(clean_name(entry.name))
            else:
                found.empty.append(clean_name(entry.name))
    if found.classes and loose:
        where = list_names(found.classes, 5)
        raise FlowdiffError(f"{loose[0]}: lies beside the class folders {where}; move it into one")
    twice = [name for name, count in Counter(found.classes).items() if count > 1]
    if twice:
        raise ConfigError("dataset.root", root, f"two class folders have the name {twice[0]}: rename one")
    if len(found.classes) > 1 and {name.casefold() for name in found.classes} <= SPLITS:
        names = ", ".join(found.classes)
        say = f"{names} are splits, not classes: give one of them, {root / found.classes[0]}, which is split anew"
        raise ConfigError("dataset.root", root, say)
    found.files = found.files or [(path, 0) for path in loose]
    return found


def entries(folder: Path) -> list[Path]:
    """What lies in a folder and is not hidden, in natural order."""
    try:
        return sorted((e for e in folder.iterdir() if not is_hidden(e.name)), key=lambda entry: natural_key(entry.name))
    except OSError as error:
        raise FlowdiffError(f"{folder}: the folder can't be listed ({error.strerror})") from error


def files_below(folder: Path, root: Path) -> Iterator[Path]:
    """All files below a folder, each real folder once."""
    seen, waiting = {folder.resolve()}, [folder]
    while waiting:
        found = entries(waiting.pop())
        is_folder = [entry.is_dir() for entry in found]
        yield from (entry for entry, inner in zip(found, is_folder, strict=True) if not inner)
        for entry in reversed([entry for entry, inner in zip(found, is_folder, strict=True) if inner]):
            if entry.resolve() not in seen and not _leads_back(entry, root):
                seen.add(entry.resolve())
                waiting.append(entry)


def _leads_back(folder: Path, root: Path) -> bool:
    """Whether it is a link to the root, or to a folder that the root lies in."""
    return folder.is_symlink() and root.resolve().is_relative_to(folder.resolve())


def is_picture(path: Path, left_out: Counter[str]) -> bool:
    """Whether a file is one, by its suffix; what is none is counted.

    Raises:
        FlowdiffError: it has the suffix and is nothing that can be read: a broken link, a pipe.
    """
    suffix = path.suffix.lower()
    if suffix not in suffixes():
        left_out[clean_name(suffix)[:12] or "without a suffix"] += 1
        return False
    if not path.is_file():
        what = "a link that leads nowhere" if path.is_symlink() else "not a regular file"
        raise FlowdiffError(f"{path}: {what}: move it out of the folder")
    return True


def left_out_line(found: Found) -> str | None:
    """What was not read, in words."""
    parts = [f"{count} {suffix}" for suffix, count in found.left_out.most_common()]
    words = [f"left out: {list_names(parts, 8)}"] if parts else []
    words += [f"no pictures in the folders {list_names(found.empty, 8)}"] if found.empty else []
    return "; ".join([*words, *found.said]) or None
