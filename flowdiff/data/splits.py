"""Training, validation and test rows that hold each class in proportion, and leave none without training rows."""

import torch
from torch import Tensor


def split_by_class(labels: Tensor, val_fraction: float, test_fraction: float) -> dict[str, Tensor] | None:
    """Row numbers of the three splits, ascending; the same for every run.

    Validation and test get their shares of all rows, at least one row each, by the largest remainders of the classes'
    shares; one row of each class stays for training.

    Args:
        labels: (N,) int64.
        val_fraction, test_fraction: shares of N.

    Returns:
        None: the classes have too few rows to hold one out for validation and one for the test.
    """
    classes, sizes = labels.unique(return_counts=True)
    free = sizes - 1
    if int(free.sum()) < 2:
        return None
    held = torch.zeros(2, len(classes), dtype=torch.int64)  # rows of each class for validation, and for the test
    owed = torch.zeros(len(classes), dtype=torch.float64)
    for i, fraction in enumerate((val_fraction, test_fraction)):
        owed += sizes * fraction
        room = free - held.sum(0)
        wanted = min(max(1, round(len(labels) * fraction)), int(room.sum()) - (1 - i))
        held[i] = _deal(owed - held.sum(0), sizes * fraction, room, wanted)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    rows: dict[str, list[Tensor]] = {"train": [], "val": [], "test": []}
    for c, (n_val, n_test) in zip(classes, held.T.tolist(), strict=True):
        own = order[labels[order] == c]
        parts = own.split([n_val, n_test, len(own) - n_val - n_test])
        for split, part in zip(("val", "test", "train"), parts, strict=True):
            rows[split].append(part)
    return {split: torch.cat(parts).sort().values for split, parts in rows.items()}


def _deal(owed: Tensor, share: Tensor, room: Tensor, wanted: int) -> Tensor:
    """`wanted` rows dealt out to the classes: whole shares first, then one by one to whom most is owed."""
    given = torch.minimum(share.floor().long(), room)
    for _ in range(wanted - int(given.sum())):
        left = torch.where(given < room, owed - given, -torch.inf)
        given[int(left.argmax())] += 1
    while int(given.sum()) > wanted:
        given[int(torch.where(given > 0, given - owed, -torch.inf).argmax())] -= 1
    return given
