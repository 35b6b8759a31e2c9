import os
import signal
from itertools import chain

import pytest
from datasets import Dataset

from hf_gru_captioner.data import EpochBatches, StreamedBatches


class Numbers:
    """Rows that are their own index."""

    epoch = 0

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return {"row": index, "epoch": self.epoch}


def collate(rows):
    return {"rows": [row["row"] for row in rows], "epochs": {row.get("epoch") for row in rows}}


def epoch_of(batches, epoch, first_step=0):
    """Rows of each step, micro-batches joined."""
    return [[row for batch in step for row in batch["rows"]] for step in batches.epoch(epoch, first_step)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_epoch_sees_every_photo_once_in_an_order_of_its_own(num_workers):
    batches = EpochBatches(Numbers(10), collate, 4, num_workers=num_workers)
    assert batches.steps_per_epoch == 3
    orders = [epoch_of(batches, epoch) for epoch in (1, 2, 1)]
    assert [len(step) for step in orders[0]] == [4, 4, 2]
    assert sorted(chain(*orders[0])) == sorted(chain(*orders[1])) == list(range(10))
    assert orders[0] == orders[2] != orders[1]
    assert epoch_of(EpochBatches(Numbers(10), collate, 4, seed=1), 1) != orders[0]


def test_the_rows_know_the_epoch():
    assert [step[0]["epochs"] for step in EpochBatches(Numbers(4), collate, 4).epoch(3)] == [{3}]


class Dying(Numbers):
    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


class Vanished(Numbers):
    def __getitem__(self, index):
        raise FileNotFoundError(f"photo {index} is gone")


class Mistaken(Numbers):
    def __getitem__(self, index):
        raise RuntimeError("a mistake of ours")


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (Dying, OSError, r"a prefetching process died \(.*\): free memory or lower data.num_workers"),
        (Vanished, OSError, r"^FileNotFoundError: photo \d is gone$"),
        (Mistaken, RuntimeError, "Traceback"),
    ],
)
def test_what_befell_a_process_that_reads_ahead_is_one_line_unless_it_is_our_mistake(rows, error, message):
    with pytest.raises(error, match=message):
        list(EpochBatches(rows(4), collate, 2, num_workers=1).epoch(1))


def test_an_epoch_goes_on_at_any_step():
    batches = EpochBatches(Numbers(10), collate, 3)
    whole = epoch_of(batches, 2)
    assert [epoch_of(batches, 2, first_step) for first_step in range(5)] == [whole[first:] for first in range(5)]


@pytest.mark.parametrize(("processes", "micro_batches"), [(2, 1), (1, 2), (2, 2), (3, 1)])
def test_processes_and_micro_batches_share_out_the_same_steps(processes, micro_batches):
    alone = epoch_of(EpochBatches(Numbers(10), collate, 4), 1)
    shares = [
        EpochBatches(Numbers(10), collate, 4, micro_batches=micro_batches, process=process, processes=processes)
        for process in range(processes)
    ]
    steps = [list(share.epoch(1)) for share in shares]
    assert all(len(step) == micro_batches for of_process in steps for step in of_process)
    assert all(batch["rows"] for of_process in steps for step in of_process for batch in step)
    for number, whole in enumerate(alone):
        together = [row for of_process in steps for batch in of_process[number] for row in batch["rows"]]
        assert set(together) == set(whole)
        assert len(together) == max(len(whole), processes * micro_batches)


def test_a_step_that_cannot_be_shared_out_is_refused():
    with pytest.raises(ValueError, match="4 images per step can't be split among 3 processes in 2 parts"):
        EpochBatches(Numbers(10), collate, 4, micro_batches=2, processes=3)


@pytest.fixture
def make_stream():
    def make(**options):
        stream = Dataset.from_dict({"row": list(range(20))}).to_iterable_dataset(num_shards=4)
        return StreamedBatches(stream, collate, 3, steps_per_epoch=4, block_size=7, **options)

    return make


def test_a_stream_is_shuffled_in_blocks_and_begun_anew(make_stream):
    batches = make_stream(seed=3)
    rows = [row for epoch in range(1, 6) for step in epoch_of(batches, epoch) for row in step]
    assert len(rows) == 60
    rounds = [rows[:20], rows[20:40], rows[40:]]
    assert all(sorted(each) == list(range(20)) for each in rounds)
    assert sorted(rows[:7]) == list(range(7))
    assert len({tuple(each) for each in rounds}) == 3


@pytest.mark.parametrize("stop_after", [1, 2, 3, 6, 7, 9])
def test_a_stream_goes_on_from_its_state(make_stream, stop_after):
    undisturbed = make_stream()
    steps = [step for epoch in (1, 2, 3) for step in epoch_of(undisturbed, epoch)]
    stopped = make_stream()
    seen = []
    while len(seen) < stop_after:
        for step in epoch_generator(stopped):
            seen.append(step)
            if len(seen) == stop_after:
                break
    state = stopped.state_dict()
    resumed = make_stream()
    resumed.load_state_dict(state)
    epoch, first_step = stop_after // 4 + 1, stop_after % 4
    rest = epoch_of(resumed, epoch, first_step)
    for later in range(epoch + 1, 4):
        rest += epoch_of(resumed, later)
    assert seen + rest == steps


def epoch_generator(batches):
    for step in batches.epoch(1):
        yield [row for batch in step for row in batch["rows"]]


def test_micro_batches_of_a_stream_are_whole_batches(make_stream):
    assert [len(step) for step in make_stream(micro_batches=2).epoch(1)] == [2] * 4


def test_a_process_without_photos_is_told():
    empty = Dataset.from_dict({"row": [1]}).to_iterable_dataset().filter(lambda row: False)
    with pytest.raises(ValueError, match="no images for this process"):
        next(StreamedBatches(empty, collate, 1, 1).epoch(1))
