import itertools
import json
from collections import Counter

import pytest
from datasets import Dataset

from hf_gru_captioner.data import MixedSource, MixedStream, Mixture
from hf_gru_captioner.data.mixture import images_of_epoch


class Rows:
    """Rows that record the epoch in which they are read."""

    def __init__(self, name: str, size: int, weights=None):
        self.name, self.size, self.weights, self.epoch = name, size, weights, 0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        row = {"image": f"{self.name}{index}", "epoch": self.epoch, "captions": list("abcd")}
        return row if self.weights is None else {**row, "caption_weights": self.weights}


def test_one_source_is_left_as_it_is():
    rows = Rows("x", 5)
    mixture = Mixture([MixedSource(rows)], seed=3)
    mixture.epoch = rows.epoch = 7
    assert [mixture[index] for index in range(len(mixture))] == [rows[index] for index in range(5)]


def test_images_come_as_often_as_their_source_says_each_time_as_in_an_epoch_of_its_own():
    mixture = Mixture([MixedSource(Rows("x", 4)), MixedSource(Rows("y", 10), 2.3)], seed=3)
    seen = []
    for mixture.epoch in (1, 2):
        seen.append([mixture[index] for index in range(len(mixture))])
        counts = Counter(row["image"] for row in seen[-1])
        assert sorted(counts.values()) == [1] * 4 + [2] * 7 + [3] * 3
        assert all(counts[f"x{index}"] == 1 for index in range(4))
    assert [row["image"] for row in seen[0]] == [row["image"] for row in seen[1]]  # the same share in each epoch
    epochs = Counter((row["image"], row["epoch"]) for row in itertools.chain(*seen) if row["image"][0] == "y")
    assert set(epochs.values()) == {1}


def test_a_fraction_is_a_share_drawn_by_the_seed():
    assert images_of_epoch(1000, 0.25).tolist() == images_of_epoch(1000, 0.25).tolist()
    drawn = images_of_epoch(1000, 0.25).tolist()
    assert len(set(drawn)) == 250
    assert drawn == sorted(drawn)
    assert drawn != images_of_epoch(1000, 0.25, seed=1).tolist()
    assert 400 < sum(drawn) / 250 < 600  # of all of the set
    with pytest.raises(ValueError, match="no image is left"):
        Mixture([MixedSource(Rows("x", 3), 0.01)])


def test_captions_are_drawn_again_each_epoch_with_their_weights():
    weights = [1.0, 2.0, 3.0, 4.0]
    mixture = Mixture([MixedSource(Rows("x", 50, weights), weight=0.5, captions_per_epoch=2)])
    seen = Counter()
    for mixture.epoch in (1, 2):
        for index in range(50):
            row = mixture[index]
            assert row == mixture[index]
            assert row["captions"] == sorted(set(row["captions"]))
            assert row["caption_weights"] == [0.5 * weights["abcd".index(caption)] for caption in row["captions"]]
            seen["".join(row["captions"])] += 1
    assert len(seen) == 6  # of 4 captions each pair
    assert max(seen.values()) < 40
    mixture.epoch = 3
    third = [mixture[index]["captions"] for index in range(50)]
    mixture.epoch = 4
    assert third != [mixture[index]["captions"] for index in range(50)]


def test_the_weight_of_a_source_is_that_of_captions_without_one():
    assert Mixture([MixedSource(Rows("x", 1), weight=0.6)])[0]["caption_weights"] == [0.6] * 4


@pytest.fixture
def make_stream():
    """Makes a mixture of two streams of 6 and 20 rows, the second drawn three times as often."""

    def make() -> MixedStream:
        streams = []
        for name, size in (("x", 6), ("y", 20)):
            rows = {"image": [f"{name}{index}" for index in range(size)], "captions": [["a", "b"]] * size}
            streams.append(Dataset.from_dict(rows).to_iterable_dataset(2))
        return MixedStream([MixedSource(streams[0]), MixedSource(streams[1], 3.0, 0.5, 1)], seed=2)

    return make


def take(stream, number: int) -> list[tuple]:
    rows = itertools.islice(iter(stream), number)
    return [(row["image"], tuple(row["captions"]), tuple(row.get("caption_weights", ()))) for row in rows]


def test_streams_are_drawn_in_their_shares_and_begin_again(make_stream):
    rows = take(make_stream(), 400)
    assert {row[1:] for row in rows} == {(("a", "b"), ()), (("a",), (0.5,)), (("b",), (0.5,))}
    names = [row[0] for row in rows]
    of_first = [name for name in names if name[0] == "x"]
    assert 70 < len(of_first) < 130  # a quarter
    assert of_first[:12] == [f"x{index}" for index in range(6)] * 2
    assert take(make_stream(), 400) == rows


@pytest.mark.parametrize("stop", [1, 2, 10, 57])
def test_a_mixture_of_streams_goes_on_where_it_was_left(make_stream, stop):
    expected = take(make_stream(), 100)
    stream = make_stream()
    assert take(stream, stop) == expected[:stop]
    state = json.loads(json.dumps(stream.state_dict()))
    resumed = make_stream()
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert take(resumed, 100 - stop) == expected[stop:]
