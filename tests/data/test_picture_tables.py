"""A table that names the classes of pictures: the same data as folders give, and a line about what is wrong in it."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowdiff.data.images import ImageFolder
from flowdiff.errors import FlowdiffError

SPLITS = ("train", "val", "test")
NAMES = [f"scans/{i:02}.png" for i in range(24)]
CLASSES = ["10" if i % 3 else "9" for i in range(24)]
ROWS = list(zip(NAMES, CLASSES, strict=True))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """24 pictures in one folder that is no class."""
    (tmp_path / "own" / "scans").mkdir(parents=True)
    rng = np.random.RandomState(0)
    for name in NAMES:
        Image.fromarray(rng.randint(0, 256, (3, 4, 3)).astype(np.uint8)).save(tmp_path / "own" / name)
    return tmp_path / "own"


def write(root: Path, rows: list[tuple[str, str]], column: str = "label") -> Path:
    lines = [f"file_name,{column}", *(f"{name},{value}" for name, value in rows)]
    (root / "metadata.csv").write_text("\n".join(lines))
    return root


def pairs(data: ImageFolder) -> set[tuple[bytes, str]]:
    """Each picture's bytes and the name of its class."""
    splits = [data.images(split) for split in SPLITS]
    return {(k.numpy().tobytes(), data.class_names[c]) for ks, y in splits for k, c in zip(ks, y.tolist(), strict=True)}


def refused(root: Path) -> str:
    with pytest.raises(FlowdiffError) as caught:
        ImageFolder(str(root)).images("train")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("form", ["csv", "csv of Windows", "jsonl", "jsonl of numbers"])
def test_each_picture_has_its_class(root: Path, form: str) -> None:
    if form == "csv":
        write(root, ROWS, "class")
    elif form == "csv of Windows":
        lines = ["file_name,label", *(f'"./{name}"," {label} "' for name, label in ROWS), ""]
        (root / "metadata.csv").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    else:
        rows = [{"file_name": n, "label": int(c) if "numbers" in form else c, "caption": [1]} for n, c in ROWS]
        (root / "metadata.jsonl").write_text("\n\n".join(json.dumps(row) for row in reversed(rows)))
    data = ImageFolder(str(root), val_fraction=0.2, test_fraction=0.2)
    assert data.class_names == ["9", "10"] and data.num_classes == 2
    expected = {(np.asarray(Image.open(root / n)).transpose(2, 0, 1).tobytes(), c) for n, c in ROWS}
    assert pairs(data) == expected
    unread = [f"columns of metadata.{form[:5]} that are not read: caption"] if form.startswith("jsonl") else []
    assert data.notes == ["classes: 0 = 9 (8), 1 = 10 (16)", *unread]


def test_the_splits_are_those_of_folders(root: Path, tmp_path: Path) -> None:
    """Of the same pictures in the same order: only where the class is written differs."""
    names = [(f"{c}/{i}.png", c) for c in ("cat", "dog") for i in range(12)]
    for (name, _), old in zip(names, NAMES, strict=True):
        (tmp_path / "folders" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / old).rename(tmp_path / "folders" / name)
    plain = ImageFolder(str(tmp_path / "folders"))
    before = [plain.images(split) for split in SPLITS]
    both = ImageFolder(str(write(tmp_path / "folders", names)))
    for (k, y), split in zip(before, SPLITS, strict=True):
        assert torch.equal(k, both.images(split)[0]) and torch.equal(y, both.images(split)[1])


def test_pictures_that_the_table_does_not_name_are_counted(root: Path) -> None:
    data = ImageFolder(str(write(root, ROWS[:20])), val_fraction=0.2, test_fraction=0.2)
    data.images("train")
    assert len(data.files) == 20 and data.notes[-1] == "not named in metadata.csv: 4 pictures"


@pytest.mark.parametrize("text", ["file_name,caption\nscans/00.png,x\n", "file_name,label\n", "", "caption\nx\n"])
def test_a_table_without_classes_changes_nothing(root: Path, text: str) -> None:
    for name in NAMES:
        (root / name).rename(root / Path(name).name)
    (root / "metadata.csv").write_text(text)
    data = ImageFolder(str(root))
    data.images("train")
    what = "column label or class" if text.count("\n") == 2 and "label" not in text else "rows"
    assert data.num_classes == 0 and len(data.files) == 24
    assert data.notes[-1] == f"left out: 1 .csv; no pictures in the folders scans; metadata.csv has no {what}"


def test_folders_are_classes_where_the_table_names_none(root: Path) -> None:
    (root / "metadata.jsonl").write_text('{"file_name": "scans/00.png", "caption": "x"}')
    assert ImageFolder(str(root)).class_names == ["scans"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label\ncat\n", "has the column label but none file_name"),
        ("file_name,label,class\nscans/00.png,a,b\n", "has the columns label and class; keep the one"),
        ("file_name,label,label\nscans/00.png,a,b\n", "two columns have one name"),
        ("file_name,label\nscans/00.png,a\nscans/99.png,a\n", "line 3: there is no picture scans/99.png in the folder"),
        ("file_name,label\nscans/00.png,a\n./scans/00.png,b\n", "line 3: names ./scans/00.png a second time"),
        ("file_name,label\nscans/00.png\n", "line 2: the label of scans/00.png is empty"),
        ("file_name,label\nscans/00.png,  \n", "line 2: the label of scans/00.png is empty"),
        ("file_name,label\nscans/00.png,a,b\n", "line 2: has 3 cells, the first line 2"),
        ('file_name,label\nscans/00.png,"a\n', "metadata.csv: unexpected end of data"),
        (f"file_name,label\nscans/00.png,{'a' * 300}\n", "line 2: the label of scans/00.png has more than 255"),
        (f"file_name,label\nscans/00.png,{'a' * (1 << 17)}\n", "a line has 65,536 characters or more"),
        (b"file_name,label\nscans/00.png,\xff\n", "metadata.csv: 'utf-8' codec can't decode byte"),
        ("file_name,label\nscans/00.png,a\n", "only 1 images in the folder .*not named in metadata.csv: 23 pictures"),
    ],
)
def test_wrong_tables(root: Path, text: str | bytes, message: str) -> None:
    (root / "metadata.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    found = refused(root)
    assert str(root) in found and re.search(message, found), found


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1, 2]", "line 1: is no object"),
        ("{", "line 1: is no JSON"),
        ("[" * 60000, "metadata.jsonl: "),
        *((f'{{"file_name": "scans/00.png", "label": {value}}}', "line 1: the label of scans/00.png is empty, or no")
          for value in ("null", "true", "1.5", "[1]", '""')),
        *((f'{{"file_name": {value}, "label": "a"}}', "line 1: there is no picture") for value in ("null", "3", '""')),
        ('{"label": "a", "file_name": "a\\u0000.png"}', "line 1: there is no picture"),
    ],
)  # fmt: skip
def test_wrong_lines_of_json(root: Path, line: str, message: str) -> None:
    (root / "metadata.jsonl").write_text(line)
    assert message in refused(root)


def test_two_tables_and_a_table_against_folders(root: Path) -> None:
    write(root, ROWS)
    (root / "metadata.jsonl").touch()
    assert "metadata.csv: lies beside metadata.jsonl; keep one of them" in refused(root)
    (root / "metadata.jsonl").unlink()
    (root / "9").mkdir()
    (root / NAMES[1]).rename(root / "9" / "x.png")
    write(root, [*ROWS[:1], ("9/x.png", "10"), *ROWS[2:]])
    assert "says that 9/x.png is of the class 10, its folder says 9; put one right" in refused(root)


@pytest.mark.parametrize("name", ["../x.png", "{outside}", "scans/../../x.png", "scans/../scans/00.png", "/etc/passwd"])
def test_no_name_leads_out_of_the_folder(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = root.parent / "x.png"
    Image.new("RGB", (4, 3)).save(outside)
    write(root, [*ROWS, (name.format(outside=outside), "9")])
    monkeypatch.setattr(ImageFolder, "read", lambda self, path: pytest.fail(f"{path} was read"))
    assert "line 26: there is no picture" in refused(root)


def test_a_pipe_is_no_table(root: Path) -> None:
    os.mkfifo(root / "metadata.csv")
    assert "metadata.csv: not a regular file" in refused(root)


def test_other_classes_are_another_cache(root: Path, tmp_path: Path) -> None:
    """Splits hold each class in proportion, so that they are other rows when the table has changed."""
    options = {"cache": str(tmp_path / "cache")}
    ImageFolder(str(write(root, ROWS)), **options).images("train")
    changed = write(root, [(name, "9" if i < 12 else "10") for i, name in enumerate(NAMES)])
    kept, held = ImageFolder(str(changed), **options), ImageFolder(str(changed))
    for split in SPLITS:
        for one, other in zip(kept.images(split), held.images(split), strict=True):
            assert torch.equal(one, other)
