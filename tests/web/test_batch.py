import csv
import io
import threading
import zipfile

import pytest
from datasets import load_dataset
from PIL import Image

from hf_gru_captioner.data import load_captions
from hf_gru_captioner.untrusted_images import LIMITS, Limits, RefusedError
from hf_gru_captioner.web.batch import AT_ONCE, Reviewed, Sent, caption_all, images_of, saved, to_csv, to_jsonl

ROWS = [
    Reviewed("a.png", 'a dog, "black"', True),
    Reviewed("b.png", "=HYPERLINK(1)", False),
    Reviewed("ü.png", "一只狗", True),
]


def caption(content: bytes) -> str:
    return f"{Image.open(io.BytesIO(content)).width} wide"


def sent(paths) -> list[Sent]:
    return [Sent(path.name, path) for path in paths]


def test_files_and_archives_are_captioned_in_their_order(make_photo, tmp_path):
    for number in range(40):
        make_photo(number, width=30 + number).save(tmp_path / f"{number:02d}.png")
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.write(tmp_path / "03.png", "inside/03.png")
    (tmp_path / "bad.jpg").write_bytes(b"not a picture")
    (tmp_path / "bad.zip").write_bytes(b"not an archive")
    results = dict(caption_all(images_of(sent(sorted(tmp_path.iterdir())), LIMITS), caption))
    captioned = {f"{n:02d}.png": f"{30 + n} wide" for n in range(40)} | {"inside/03.png": "33 wide"}
    assert [*results] == [*list(captioned)[:40], "bad.jpg", "bad.zip", "inside/03.png"]
    assert {name: text for name, text in results.items() if name in captioned} == captioned
    assert "not a picture" in str(results["bad.jpg"])
    assert "not a ZIP archive" in str(results["bad.zip"])


def test_files_that_were_deleted_meanwhile_are_said_and_the_others_captioned(make_photo, tmp_path):
    make_photo().save(tmp_path / "a.png")
    paths = [tmp_path / "gone.png", tmp_path / "gone.zip", tmp_path / "a.png"]
    results = dict(caption_all(images_of(sent(paths), LIMITS), caption))
    assert results["a.png"] == "40 wide"
    assert "deleted before its turn" in str(results["gone.png"]) == str(results["gone.zip"])


def test_of_two_photos_with_one_name_the_second_is_left_out(make_photo, tmp_path):
    make_photo().save(tmp_path / "a.png")
    first, second = images_of([Sent("b/a.png", tmp_path / "a.png")] * 2, LIMITS)
    assert first == ("b/a.png", (tmp_path / "a.png").read_bytes())
    assert second[0] == "b/a.png"
    assert "Another photo has the same name" in str(second[1])


def test_a_raw_file_in_an_archive_may_be_larger_than_other_photos(make_photo, tmp_path, write_dng):
    write_dng(tmp_path / "a.dng", make_photo(), make_photo(width=60))
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.write(tmp_path / "a.dng", "b/a.dng")
        archive.write(tmp_path / "a.dng", "b/a.jpg")
    num_bytes = (tmp_path / "a.dng").stat().st_size
    limits = Limits(image_bytes=num_bytes - 1, file_bytes=num_bytes)
    (name, content), (other, refusal) = images_of(sent([tmp_path / "more.zip"]), limits)
    assert (name, caption(content)) == ("b/a.dng", "60 wide")
    assert (other, str(refusal)) == ("b/a.jpg", "This file is larger than 0 MB.")


def test_photos_beyond_the_limit_are_left_out_and_that_is_said(make_photo, tmp_path):
    """The limit is for all files together, not per archive."""
    for number in range(3):
        make_photo(number).save(tmp_path / f"{number}.png")
        with zipfile.ZipFile(tmp_path / f"{number}.zip", "w") as archive:
            for other in range(3):
                archive.write(tmp_path / f"{number}.png", f"{number}/{other}.png")
    found = list(images_of(sent(sorted(tmp_path.glob("*.zip"))), Limits(archive_images=4)))
    assert [isinstance(content, bytes) for _, content in found] == [True] * 4 + [False]
    assert "4 photos are captioned at once; this one and those after it are left out" in str(found[-1][1])


def test_a_photo_that_can_not_be_decoded_is_refused_alone(make_photo, tmp_path):
    def refuse(content):
        raise RefusedError("torn")

    make_photo().save(tmp_path / "a.png")
    ((name, refusal),) = caption_all(images_of(sent([tmp_path / "a.png"]), LIMITS), refuse)
    assert (name, str(refusal)) == ("a.png", "torn")


def test_closing_early_waits_for_no_caption(make_photo, tmp_path):
    """Gradio closes an abandoned generator in the thread that serves everyone."""
    make_photo().save(tmp_path / "a.png")
    go_on, begun = threading.Event(), []

    def wait(content):
        begun.append(content)
        if len(begun) > 1:
            go_on.wait(60)
        return caption(content)

    files = [Sent(f"{number}.png", tmp_path / "a.png") for number in range(100)]
    captioned = caption_all(images_of(files, LIMITS), wait)
    assert next(captioned) == ("0.png", "40 wide")
    release = threading.Timer(30, go_on.set)
    release.start()
    captioned.close()
    has_waited = go_on.is_set()
    release.cancel()
    go_on.set()
    assert not has_waited
    assert len(begun) <= AT_ONCE + 1


def test_a_spreadsheet_computes_nothing():
    text = to_csv(ROWS)
    assert text[0] == "\ufeff"
    read = list(csv.reader(io.StringIO(text[1:])))
    assert read == [
        ["file_name", "caption"],
        ["a.png", 'a dog, "black"'],
        ["b.png", "'=HYPERLINK(1)"],
        ["ü.png", "一只狗"],
    ]


@pytest.mark.parametrize("cell", ["=1", "+1", "-1", "@A1", "\t=1", "\r=1", "\n=1", " =1", "＝1", "＠A1"])
def test_no_beginning_of_a_formula_begins_a_cell(cell):
    ((_, first), (name, text)) = csv.reader(io.StringIO(to_csv([Reviewed(cell, cell, False)])[1:], newline=""))
    assert name == text == f"'{cell}"
    assert first == "caption"


def test_datasets_reads_the_table_back(make_photo, tmp_path):
    for row in ROWS:
        make_photo().save(tmp_path / row.name)
    (tmp_path / "metadata.jsonl").write_text(to_jsonl(ROWS))
    rows = load_dataset("imagefolder", data_dir=str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(rows["caption"]) == sorted(row.caption for row in ROWS)
    assert rows[0]["image"].size == (40, 30)


def test_a_review_is_saved_as_text_files_beside_the_photos():
    rows = [Reviewed("a/b.jpg", "a  dog\n runs", False), Reviewed("c.png", "一只狗", True)]
    name, content = saved("txt", rows)
    assert name == "captions-as-text-files.zip"
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        texts = {each: archive.read(each).decode() for each in archive.namelist()}
    assert texts == {"a/b.txt": "a dog runs\n", "c.txt": "一只狗\n"}
    with pytest.raises(RefusedError, match=r"a/b\.jpg and a/b\.png would share a/b\.txt"):
        saved("txt", [rows[0], Reviewed("a/b.png", "", False)])


def test_training_reads_what_was_corrected_in_folders(make_photo, tmp_path):
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    rows = [Reviewed(f"deep/{n}.png", f"a dog number {n}", n != 3) for n in range(6)]
    for number, row in enumerate(rows):
        make_photo(number).save(tmp_path / "photos" / row.name)
    name, content = saved("corrections", rows)
    (tmp_path / name).write_bytes(content)
    found = [
        caption
        for split in ("train", "validation")
        for row in load_captions(tmp_path / "corrections.jsonl", split, images=tmp_path / "photos")
        for caption in row["captions"]
    ]
    assert sorted(found) == [f"a dog number {n}" for n in (0, 1, 2, 4, 5)]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("csv", "no captions to save"),
        ("corrections", "Accept or change some captions first"),
        ("exe", "can be saved as"),
    ],
)
def test_what_can_not_be_saved_is_said(kind, said):
    with pytest.raises(RefusedError, match=said):
        saved(kind, [Reviewed("a.png", "a dog", False)] if kind != "csv" else [])
