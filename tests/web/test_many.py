import csv
import io
import zipfile

from datasets import load_dataset
from PIL import Image

from hf_gru_captioner.intake import LIMITS, RefusedError
from hf_gru_captioner.web.many import caption_all, pictures_of, to_csv, to_jsonl

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
    results = list(caption_all(pictures_of(sorted(tmp_path.iterdir()), LIMITS), caption))
    assert [text for name, _, text in results if name[0].isdigit()] == [f"{30 + n} wide" for n in [*range(40), 3]]
    refused = {name: text for name, photo, text in results if photo is None}
    assert set(refused) == {"bad.jpg", "bad.zip"}
    assert "not a picture" in refused["bad.jpg"]
    assert "not a ZIP archive" in refused["bad.zip"]


def test_a_photo_that_can_not_be_decoded_is_refused_alone(make_photo, tmp_path):
    def refuse(content):
        raise RefusedError("torn")

    make_photo().save(tmp_path / "a.png")
    assert list(caption_all(pictures_of([tmp_path / "a.png"], LIMITS), refuse)) == [("a.png", None, "torn")]


def test_a_spreadsheet_computes_nothing():
    read = list(csv.reader(io.StringIO(to_csv(ROWS))))
    assert read == [
        ["file_name", "caption"],
        ["a.png", 'a dog, "black"'],
        ["b.png", "'=HYPERLINK(1)"],
        ["ü.png", "一只狗"],
    ]


def test_datasets_reads_the_table_back(make_photo, tmp_path):
    for name, _ in ROWS:
        make_photo().save(tmp_path / name)
    (tmp_path / "metadata.jsonl").write_text(to_jsonl(ROWS))
    rows = load_dataset("imagefolder", data_dir=str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(rows["caption"]) == sorted(text for _, text in ROWS)
    assert rows[0]["image"].size == (40, 30)
