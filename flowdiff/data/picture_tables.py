"""Classes that a table beside the pictures gives: `metadata.csv` or `metadata.jsonl`, as in the library datasets.

A row names a picture below the folder (`file_name`, / between folders) and its class (`label` or `class`):

    file_name,label                     {"file_name": "a/0001.png", "label": "cat"}
    a/0001.png,cat                      {"file_name": "a/0002.png", "label": "dog"}

Its pictures may lie in any folders; those that no row names are counted and left out. A name picks one of the pictures
that `data.folders` finds, and no path is made of it: none leads out of the folder, whoever wrote the table.
"""

import csv
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, TextIO

from flowdiff.data.folders import Found, clean_name, files_below, is_picture, list_names, natural_key, scan
from flowdiff.errors import FlowdiffError, one_line, spell
from flowdiff.files import Unreadable, require_file

TABLES = ("metadata.csv", "metadata.jsonl")
CLASS = ("label", "class")
LONGEST = 255  # characters of a class's name, as of a folder's
MOST_LINE = 1 << 16  # characters of a line


def find_pictures(root: Path) -> Found:
    """All pictures below a folder, of the classes that its table gives; without one, or a class in it, as `scan` says.

    Raises:
        FlowdiffError: as of `scan`, or the table can't be read, names what is no picture in the folder, names one
            twice, leaves out a class, or contradicts the folders of classes; there are two tables.
    """
    tables = [root / name for name in TABLES if (root / name).exists() and not (root / name).is_dir()]
    if len(tables) > 1:
        raise FlowdiffError(f"{tables[0]}: lies beside {tables[1].name}; keep one of them")
    if not tables:
        return scan(root)
    rows = read_rows(tables[0])
    first = next(rows, None)
    column = _class_column(tables[0], first[1]) if first else None
    if first is None or column is None:
        found = scan(root)
        lacking = f"column {' or '.join(CLASS)}" if first else "rows"
        found.said.append(f"{tables[0].name} has no {lacking}")
        return found
    found = _classify(root, tables[0], chain([first], rows), column)
    unread = [clean_name(name) for name in first[1] if name not in ("file_name", column)]
    found.said += [f"columns of {tables[0].name} that are not read: {list_names(unread, 8)}"] if unread else []
    return found


def read_rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a table, each with the number of its line.

    Raises:
        FlowdiffError: it is no such table.
    """
    try:
        with require_file(table).open(encoding="utf-8-sig", newline="") as file:
            yield from (_csv_rows if table.suffix == ".csv" else _json_rows)(_lines(file))
    except (OSError, Unreadable, ValueError, csv.Error, RecursionError) as error:
        raise FlowdiffError(f"{table}: {one_line(error, 200)}") from error


def _lines(file: TextIO) -> Iterator[str]:
    while line := file.readline(MOST_LINE):
        if len(line) == MOST_LINE:
            raise ValueError(f"a line has {MOST_LINE:,} characters or more")
        yield line


def _csv_rows(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(lines, strict=True)
    header = [name.strip() for name in next(reader, [])]
    if len(set(header)) < len(header):
        raise ValueError("two columns have one name")
    for cells in reader:
        if len(cells) > len(header):
            raise ValueError(f"line {reader.line_num}: has {len(cells)} cells, the first line {len(header)}")
        if cells:
            yield reader.line_num, dict(zip_longest(header, cells))


def _json_rows(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number}: is no JSON") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number}: is no object with file_name and label")
        yield number, row


def _class_column(table: Path, row: Mapping[str, Any]) -> str | None:
    """The column of classes; None: there is none."""
    columns = [name for name in CLASS if name in row]
    if len(columns) > 1:
        raise FlowdiffError(f"{table}: has the columns {' and '.join(columns)}; keep the one that is meant")
    if columns and "file_name" not in row:
        raise FlowdiffError(f"{table}: has the column {columns[0]} but none file_name, the name of a picture")
    return columns[0] if columns else None


def _classify(root: Path, table: Path, rows: Iterable[tuple[int, Mapping[str, Any]]], column: str) -> Found:
    """The pictures that the rows name, in the order of the folder, whatever the table's."""
    found, given = Found(by_table=True), dict[str, str]()
    pictures = {
        _key(path.relative_to(root).as_posix()): path
        for path in files_below(root, root)
        if path != table and is_picture(path, found.left_out)
    }
    for number, row in rows:
        name, where = row.get("file_name"), f"{table}: line {number}"
        key = _key(name) if isinstance(name, str) else ""
        if key not in pictures:
            raise FlowdiffError(f"{where}: there is no picture {spell(name)} in the folder")
        if key in given:
            raise FlowdiffError(f"{where}: names {spell(name)} a second time")
        given[key] = _class_name(row.get(column))
        if not 0 < len(given[key]) <= LONGEST:
            what = "is empty, or no text or whole number" if not given[key] else f"has more than {LONGEST} characters"
            raise FlowdiffError(f"{where}: the {column} of {spell(name)} {what}")
    found.classes = sorted(set(given.values()), key=natural_key)
    numbers = {name: c for c, name in enumerate(found.classes)}
    for key, name in given.items():
        folder = clean_name(key.partition("/")[0]) if "/" in key else name
        if folder != name and folder in numbers:
            raise FlowdiffError(
                f"{table}: says that {spell(key)} is of the class {spell(name)}, its folder says {spell(folder)}; "
                "put one right, or move the table out of the folder: then the folders are the classes"
            )
    found.files = [(path, numbers[given[key]]) for key, path in pictures.items() if key in given]
    if len(given) < len(pictures):
        found.said.append(f"not named in {table.name}: {len(pictures) - len(given)} pictures")
    return found


def _key(name: str) -> str:
    """A name below the folder as it is compared: composed, as some systems store it and others don't."""
    return unicodedata.normalize("NFC", name.removeprefix("./"))


def _class_name(value: Any) -> str:
    """The class in a row as its name; empty where it is none."""
    if isinstance(value, str):
        return clean_name(value.strip())
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""
