import pytest

from hf_gru_captioner.cli.export import _evenly_spread


@pytest.mark.parametrize(
    ("num_paths", "number", "chosen"),
    [
        (8, 4, [0, 2, 4, 6]),
        (7, 4, [0, 1, 3, 5]),
        (4, 4, [0, 1, 2, 3]),
        (3, 4, [0, 1, 2]),
        (0, 4, []),
    ],
)
def test_the_calibration_set_is_spread_evenly(num_paths, number, chosen):
    paths = [f"{index}.jpg" for index in range(num_paths)]
    assert _evenly_spread(paths, number) == [paths[index] for index in chosen]


def test_the_calibration_set_reaches_the_last_photos():
    paths = [f"{index:03d}.jpg" for index in range(511)]
    spread = _evenly_spread(paths, 256)
    assert len(set(spread)) == 256
    assert spread[-1] >= "508.jpg"
