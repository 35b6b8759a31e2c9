import csv
import io
import threading
import time
import zipfile

import pytest
from datasets import load_dataset
from PIL import Image

from hf_gru_captioner.untrusted_images import LIMITS, Limits, RefusedError
from hf_gru_captioner.web.batch import AT_ONCE, caption_all, images_of, to_csv, to_jsonl

ROWS = [("a.png", 'a dog, "black"'), ("b.png", "=HYPERLINK(1)"), ("ü.png", "一只狗")]


def caption(content: bytes):
    photo = Image.open(io.BytesIO(content)).convert("RGB")
    return photo, f"{photo.width} wide"


def test_files_and_archives_are_captioned_in_their_order(make_photo, tmp_path):
    for number in range(40):
        make_photo(number, width=30 + number).save(tmp_path / f"{number:02d}.png")
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.write(tmp_path / "03.png", "inside/03.png")
    (tmp_path / "bad.jpg").write_bytes(b"not a picture")
    (tmp_path / "bad.zip").write_bytes(b"not an archive")
    results = list(caption_all(images_of(sorted(tmp_path.iterdir()), LIMITS), caption))
    assert [text for name, _, text in results if name[0].isdigit()] == [f"{30 + n} wide" for n in [*range(40), 3]]
    refused = {name: text for name, photo, text in results if photo is None}
    assert set(refused) == {"bad.jpg", "bad.zip"}
    assert "not a picture" in refused["bad.jpg"]
    assert "not a ZIP archive" in refused["bad.zip"]


def test_files_that_were_deleted_meanwhile_are_said_and_the_others_captioned(make_photo, tmp_path):
    make_photo().save(tmp_path / "a.png")
    paths = [tmp_path / "gone.png", tmp_path / "gone.zip", tmp_path / "a.png"]
    results = {name: text for name, _, text in caption_all(images_of(paths, LIMITS), caption)}
    assert results["a.png"] == "40 wide"
    assert "deleted before its turn" in results["gone.png"] == results["gone.zip"]


def test_photos_beyond_the_limit_are_left_out_and_that_is_said(make_photo, tmp_path):
    """Of all files together, not of each archive."""
    for number in range(3):
        make_photo(number).save(tmp_path / f"{number}.png")
        with zipfile.ZipFile(tmp_path / f"{number}.zip", "w") as archive:
            for other in range(3):
                archive.write(tmp_path / f"{number}.png", f"{other}.png")
    found = list(images_of(sorted(tmp_path.glob("*.zip")), Limits(archive_images=4)))
    assert [isinstance(content, bytes) for _, content in found] == [True] * 4 + [False]
    assert "4 photos are captioned at once; this one and those after it are left out" in str(found[-1][1])


def test_a_photo_that_can_not_be_decoded_is_refused_alone(make_photo, tmp_path):
    def refuse(content):
        raise RefusedError("torn")

    make_photo().save(tmp_path / "a.png")
    assert list(caption_all(images_of([tmp_path / "a.png"], LIMITS), refuse)) == [("a.png", None, "torn")]


def test_closing_early_waits_for_no_caption(make_photo, tmp_path):
    """Gradio closes what a client left in the thread that serves everyone."""
    make_photo().save(tmp_path / "a.png")
    go_on, begun = threading.Event(), []

    def wait(content):
        begun.append(content)
        if len(begun) > 1:
            go_on.wait(20)
        return caption(content)

    captioned = caption_all(images_of([tmp_path / "a.png"] * 100, LIMITS), wait)
    assert next(captioned)[2] == "40 wide"
    release = threading.Timer(3, go_on.set)
    release.start()
    start = time.monotonic()
    captioned.close()
    took = time.monotonic() - start
    release.cancel()
    go_on.set()
    assert took < 1
    assert len(begun) <= AT_ONCE + 1


def test_a_spreadsheet_computes_nothing():
    read = list(csv.reader(io.StringIO(to_csv(ROWS))))
    assert read == [
        ["file_name", "caption"],
        ["a.png", 'a dog, "black"'],
        ["b.png", "'=HYPERLINK(1)"],
        ["ü.png", "一只狗"],
    ]


@pytest.mark.parametrize("cell", ["=1", "+1", "-1", "@A1", "\t=1", "\r=1", "\n=1", " =1", "＝1", "＠A1"])
def test_no_beginning_of_a_formula_begins_a_cell(cell):
    ((_, first), (name, text)) = csv.reader(io.StringIO(to_csv([(cell, cell)]), newline=""))
    assert name == text == f"'{cell}"
    assert first == "caption"


def test_datasets_reads_the_table_back(make_photo, tmp_path):
    for name, _ in ROWS:
        make_photo().save(tmp_path / name)
    (tmp_path / "metadata.jsonl").write_text(to_jsonl(ROWS))
    rows = load_dataset("imagefolder", data_dir=str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(rows["caption"]) == sorted(text for _, text in ROWS)
    assert rows[0]["image"].size == (40, 30)
