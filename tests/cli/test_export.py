import pytest

from hf_gru_captioner.cli import main
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


def test_photos_in_subfolders_are_not_a_calibration_set(checkpoint, photo, tmp_path, capsys):
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    photo.save(tmp_path / "photos" / "deep" / "a.png")
    options = ["--int8", "--images", str(tmp_path / "photos"), "--output", str(tmp_path / "graphs")]
    assert main(["export", str(checkpoint), *options]) == 2
    assert capsys.readouterr().err.endswith(f"--images: no images to calibrate with in {tmp_path / 'photos'}.\n")
