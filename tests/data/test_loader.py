"""The order of the data is a function of (seed, epoch), and a loader goes on where it was saved."""

import threading

import pytest
import torch
from torch import Tensor

from flowdiff.data.loader import TensorLoader


def make(n=23, batch_size=5, **options):
    rows = torch.arange(n)
    return TensorLoader((rows, rows * 10), batch_size, **options)


def epoch_of(loader):
    return [k.tolist() for k, _ in loader]


def test_a_batch_holds_the_same_rows_of_every_tensor():
    assert all(torch.equal(k * 10, labels) for k, labels in make())


def test_order_depends_on_seed_and_epoch_only():
    one, two, other = make(seed=3), make(seed=3), make(seed=4)
    first, second = epoch_of(one), epoch_of(one)
    assert first != second
    torch.rand(7)  # the global generator is not involved
    assert [epoch_of(two), epoch_of(two)] == [first, second]
    assert epoch_of(other) != first


def test_every_row_is_seen_once():
    assert sorted(sum(epoch_of(make(drop_last=False)), [])) == list(range(23))
    batches = epoch_of(make())
    assert len(batches) == len(make()) == 4
    assert [len(batch) for batch in batches] == [5] * 4 and len(set(sum(batches, []))) == 20


def test_without_shuffling_the_order_is_the_datas_own():
    loader = make(shuffle=False, drop_last=False)
    assert sum(epoch_of(loader), []) == list(range(23)) == sum(epoch_of(loader), [])
    assert len(loader) == 5


@pytest.mark.parametrize("taken", (0, 1, 3, 4, 6, 8))
def test_resumes_where_it_was_saved(taken):
    def stream(loader, count):
        out = []
        while len(out) < count:
            for k, _ in loader:
                out.append(k.tolist())
                if len(out) == count:
                    break
        return out

    whole = stream(make(), 11)
    loader = make()
    begun = stream(loader, taken) if taken else []
    resumed = make()
    resumed.load_state_dict(loader.state_dict())
    assert begun + stream(resumed, 11 - taken) == whole


def test_two_iterators_before_the_first_batch_lose_nothing():
    # Lightning makes an iterator when it sets up and may make another before it takes the first batch
    whole, loader = make(), make()
    next(iter(whole))
    loader.load_state_dict(whole.state_dict())
    iter(loader)
    assert epoch_of(loader)[0] == epoch_of(make())[1]


def test_leaving_an_epoch_early_begins_the_next():
    loader = make()
    next(iter(loader))
    second = epoch_of(loader)
    reference = make()
    reference.set_epoch(1)
    assert second == epoch_of(reference)


def test_set_epoch_goes_forward_only():
    loader = make()
    loader.load_state_dict({"epoch": 2, "step": 1})
    loader.set_epoch(2)
    assert loader.state_dict() == {"epoch": 2, "step": 1}
    loader.set_epoch(1)
    assert loader.state_dict() == {"epoch": 2, "step": 1}
    loader.set_epoch(3)
    assert loader.state_dict() == {"epoch": 3, "step": 0}


def test_processes_share_an_epoch():
    parts = [make(rank=rank, world_size=2, batch_size=3) for rank in range(2)]
    rows = [sum(epoch_of(part), []) for part in parts]
    assert len(rows[0]) == len(rows[1]) == 9 and not set(rows[0]) & set(rows[1])
    assert len(parts[0]) == 3


def test_processes_see_every_row_in_as_many_batches():
    parts = [make(n=7, rank=rank, world_size=2, batch_size=3, shuffle=False, drop_last=False) for rank in range(2)]
    batches = [epoch_of(part) for part in parts]
    assert [len(part) for part in parts] == [len(found) for found in batches] == [1, 1]
    assert sorted(sum(batches[0] + batches[1], [])) == list(range(7))


def test_a_batch_is_no_larger_than_the_data():
    loader = make(n=7, batch_size=100)
    assert len(loader) == 1 and len(epoch_of(loader)[0]) == 7


def test_lightning_takes_its_state():
    from lightning.pytorch.utilities.combined_loader import CombinedLoader

    combined = CombinedLoader(make(), "max_size_cycle")
    iterator = iter(combined)
    next(iterator)
    next(iterator)
    assert combined._state_dicts() == [{"epoch": 0, "step": 2}]


@pytest.mark.parametrize("num_workers", [1, 3, 50])
def test_threads_change_no_batch_and_no_position(num_workers: int) -> None:
    def loader(workers: int) -> TensorLoader:
        return TensorLoader((torch.arange(103), torch.arange(103) % 7), 10, seed=3, num_workers=workers)

    plain, ahead = loader(0), loader(num_workers)
    for _ in range(2):
        for one, other in zip(plain, ahead, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
            assert plain.state_dict() == ahead.state_dict()
    before = threading.active_count()
    epoch = iter(ahead)
    next(epoch)
    state = ahead.state_dict()
    assert threading.active_count() > before
    epoch.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before, "an epoch that is left leaves no thread"
    fresh = loader(num_workers)
    fresh.load_state_dict(state)
    plain.load_state_dict(state)
    assert torch.equal(next(iter(fresh))[0], next(iter(plain))[0])


def test_an_error_of_a_thread_arrives() -> None:
    class Broken:
        def __len__(self) -> int:
            return 30

        def __getitem__(self, index: object) -> Tensor:
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(TensorLoader((Broken(),), 10, num_workers=2))
