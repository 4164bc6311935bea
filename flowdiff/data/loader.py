"""Batches of tensors that lie in memory, in an order that is a function of (seed, epoch) and nothing else.

The order of epoch e is the permutation drawn from a generator seeded with (seed, e). Batch i of it is rows
[i·B, (i+1)·B) of that permutation; on rank r of R processes every R-th row of it, beginning with the r-th.
The state is two integers, (epoch, step), so a run that resumes in the middle of an epoch sees the batches it
would have seen.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor


class Rows(Protocol):
    """Rows of a data set, in memory (a tensor) or on disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Tensor: ...


class TensorLoader:
    """A resumable loader over in-memory tensors.

    Lightning saves and restores `state_dict` with the training loop, and calls `set_epoch` on
    `loader.sampler`
    at the start of each epoch: this loader is its own sampler.

    Args:
        tensors: with the same number of rows N; a batch is the tuple of their rows.
        batch_size: rows per batch and process; at most N/world_size is used.
        shuffle: a new order in each epoch. Without it the order is 0..N−1.
        drop_last: leave out the last, smaller batch (every step then sees the same batch size). Else every row is
            seen once, in the same number of batches on every process: one that has a row more than others takes it
            into its last batch.
        seed: fixes the order.
        rank, world_size: this process and the number of processes, for distributed training.
        num_workers: threads that read batches ahead, as many batches as threads. What is read, and in which order, is
            the same without them; rows on disk (latents) are there when the step wants them.
    """

    def __init__(
        self,
        tensors: Sequence[Rows],
        batch_size: int,
        shuffle: bool = True,
        drop_last: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
    ) -> None:
        self.tensors = tensors
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.num_workers = num_workers
        self.rows = len(tensors[0]) // world_size
        self.batch_size = max(1, min(batch_size, self.rows))
        self.epoch = 0
        self.step = 0
        self._begun = False  # the current iterator has handed out a batch
        if shuffle:  # Lightning looks for a sampler to warn of shuffling, and to tell it the epoch
            self.sampler = self
        self.batch_sampler = None  # Lightning looks whether there is one

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self.rows // self.batch_size if self.drop_last else -(-self.rows // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """The batches of the current epoch from the current step on. Leaving an epoch early and beginning a
        new iterator goes to the next epoch; a freshly restored loader goes on where it was saved.
        """
        if self._begun and self.step > 0:
            self.epoch, self.step = self.epoch + 1, 0
        self._begun = False
        return self._batches()

    def _batches(self) -> Iterator[tuple[Tensor, ...]]:
        steps = range(self.step, len(self))
        for step, batch in zip(steps, self._read(steps, self.order(self.epoch)), strict=True):
            # the position moves on before the batch is used: a state saved after its step names the next
            # batch
            last = step + 1 == len(self)
            self.epoch, self.step = (self.epoch + 1, 0) if last else (self.epoch, step + 1)
            self._begun = True
            yield batch

    def _read(self, steps: range, order: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """The batches of some steps of an epoch, with `num_workers` threads that many batches ahead."""
        if not self.num_workers:
            yield from (self._batch(step, order) for step in steps)
            return
        with ThreadPoolExecutor(self.num_workers) as pool:
            ahead = deque(pool.submit(self._batch, step, order) for step in steps[: self.num_workers])
            for step in steps:
                batch = ahead.popleft().result()
                if step + self.num_workers in steps:
                    ahead.append(pool.submit(self._batch, step + self.num_workers, order))
                yield batch

    def _batch(self, step: int, order: Tensor) -> tuple[Tensor, ...]:
        whole = step + 1 < len(self) or self.drop_last
        rows = order[step * self.batch_size :][: self.batch_size if whole else None]
        return tuple(tensor[rows] for tensor in self.tensors)

    def order(self, epoch: int) -> Tensor:
        """Row numbers of this process in the given epoch, int64."""
        n = len(self.tensors[0])
        if self.shuffle:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
            order = torch.randperm(n, generator=generator)
        else:
            order = torch.arange(n)
        own = order[self.rank :: self.world_size]
        return own[: self.rows] if self.drop_last else own

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`, unless the loader is already in it or past it."""
        if epoch > self.epoch:
            self.epoch, self.step = epoch, 0

    def state_dict(self) -> dict[str, int]:
        """The position of the next batch."""
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a saved position; one that lies behind the last batch is the beginning of the next epoch."""
        epoch, step = int(state["epoch"]), int(state["step"])
        self.epoch, self.step = (epoch, step) if 0 <= step < len(self) else (epoch + 1, 0)
        self._begun = False
