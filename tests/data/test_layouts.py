"""Every layout in docs/data.md, as small files with the same content, and every error with its message."""

import io
import json
import re
import resource
import subprocess
import sys
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from hf_gru_captioner.cli import main
from hf_gru_captioner.data.reading import ReadingOptions
from hf_gru_captioner.data.recognition import ListedSource, Shards, locate_images, recognize
from hf_gru_captioner.data.shards import shard_rows

DOCS = Path(__file__).parents[2] / "docs" / "data.md"
EXPECTED = {"a.png": ("a dog", "two dogs"), "b.png": ("a cat",)}
IMAGES = {"a.png": b"", "b.png": b""}  # the light reader never opens them


def as_json(value, **settings) -> str:
    return json.dumps(value, **settings)


def parquet(columns) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


def workbook(*sheets) -> bytes:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for number, rows in enumerate(sheets):
        sheet = book.active if number == 0 else book.create_sheet()
        for row in rows:
            sheet.append(row)
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()


def archive(files) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return file.getvalue()


def shard(files) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as opened:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            opened.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def table(image="image", caption="caption", delimiter=",") -> str:
    rows = [(image, caption), ("a.png", "a dog"), ("b.png", "a cat"), ("a.png", "two dogs")]
    return "".join(f"{delimiter.join(row)}\n" for row in rows)


def with_path(path: str) -> str:
    return table().replace("a.png", path)


TABLE = table()
ROWS = [line.split(",") for line in TABLE.splitlines()]
RECORDS = [{"image": "a.png", "captions": ["a dog", "two dogs"]}, {"image": "b.png", "captions": ["a cat"]}]
PHOTO = {"image": ["a.png", "b.png", "a.png"], "caption": ["a dog", "a cat", "two dogs"]}
COCO = {
    "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
    "annotations": [
        *({"image_id": 1, "caption": "a dog"}, {"image_id": 2, "caption": "a cat"}),
        {"image_id": 1, "caption": "two dogs"},
    ],
}
KARPATHY = {
    "images": [
        {"filename": "a.png", "split": "train", "sentences": [{"raw": "a dog"}, {"raw": "two dogs"}]},
        {"filename": "b.png", "split": "train", "sentences": [{"raw": "a cat"}]},
    ]
}
NAMES = {"a.png": ["a dog", "two dogs"], "b.png": "a cat"}
FOLDER = "."  # the source is the folder itself

# row of docs/data.md -> name of a case -> (files besides the images, source, options)
LAYOUTS = {
    "delimiter": {
        "comma": ({"t.csv": TABLE}, "t.csv", {}),
        "semicolon": ({"t.csv": table(delimiter=";")}, "t.csv", {}),
        "tab": ({"t.tsv": table(delimiter="\t")}, "t.tsv", {}),
        "tab in csv": ({"t.csv": table(delimiter="\t")}, "t.csv", {}),
        "bar": ({"t.csv": table(delimiter="|")}, "t.csv", {}),
        "bar with spaces": ({"results.csv": table(delimiter="| ")}, "results.csv", {}),
        "semicolon with commas in captions": (
            {"t.csv": "image;caption\na.png;a dog\na.png;two dogs\nb.png;a cat\n"},
            "t.csv",
            {},
        ),
        "sep= of Excel": ({"t.csv": "sep=;\n" + table(delimiter=";")}, "t.csv", {}),
        "quoted cells": ({"t.csv": re.sub(r"(a dog|a cat|two dogs)", r'"\1"', TABLE)}, "t.csv", {}),
        "spaces after commas": ({"t.csv": table(delimiter=", ")}, "t.csv", {}),
        "an open quotation mark between tabs": (
            {"t.tsv": 'image\tcaption\na.png\ta dog\nb.png\ta cat\na.png\ttwo dogs\nb.png\t"\n'},
            "t.tsv",
            {},
        ),
        "text": ({"captions.txt": TABLE}, "captions.txt", {}),
        "lines of Windows": ({"t.csv": TABLE.replace("\n", "\r\n")}, "t.csv", {}),
        "lines of old Macs": ({"t.csv": TABLE.replace("\n", "\r")}, "t.csv", {}),
        "no line end": ({"t.csv": TABLE.rstrip()}, "t.csv", {}),
        "empty rows": ({"t.csv": TABLE + ",\n\n  ,  \n"}, "t.csv", {}),
        "empty cells behind": ({"t.csv": TABLE.replace("\n", ",,\n")}, "t.csv", {}),
        "capitals in the ending": ({"T.CSV": TABLE}, "T.CSV", {}),
    },
    "header": {
        **{
            f"{name}, caption": ({"t.csv": table(image=name)}, "t.csv", {})
            for name in (
                *("image", "image_path", "file", "file_name", "filename", "path", "url", "Image", "IMAGE PATH"),
                *("File-Name", "filepath", "img", " photo ", "ImageName", "image_file_name", "images"),
            )
        },
        **{
            f"image, {name}": ({"t.csv": table(caption=name)}, "t.csv", {})
            for name in (
                *("caption", "captions", "text", "description", "title", "comment", "alt", "sentence", "Caption"),
                *("DESCRIPTION", "Alt Text", "sentences"),
            )
        },
        "captions first": ({"t.csv": "text,file\na dog,a.png\na cat,b.png\ntwo dogs,a.png\n"}, "t.csv", {}),
        "none": ({"t.csv": TABLE.partition("\n")[2]}, "t.csv", {}),
        "none, captions first": ({"t.csv": "a dog,a.png\na cat,b.png\ntwo dogs,a.png\n"}, "t.csv", {}),
        "a title above": ({"t.csv": "# my photos, of 2024\n\n" + TABLE}, "t.csv", {}),
        "none, tabs": ({"t.txt": table(delimiter="\t").partition("\n")[2]}, "t.txt", {}),
        "other columns": (
            {"t.csv": "id,image,width,caption\n1,a.png,3,a dog\n2,b.png,4,a cat\n3,a.png,3,two dogs\n"},
            "t.csv",
            {},
        ),
        "named by options": (
            {"t.csv": table("bild", "Beschreibung DE")},
            "t.csv",
            {"image_column": "Bild", "caption_column": "Beschreibung DE"},
        ),
        "named among known ones": (
            {"t.csv": "image,thumb,caption,alt\nx,a.png,y,a dog\nx,b.png,y,a cat\nx,a.png,y,two dogs\n"},
            "t.csv",
            {"image_column": "thumb", "caption_column": "alt"},
        ),
        "two of captions named": (
            {"t.csv": "image,x,y\na.png,a dog,two dogs\nb.png,a cat,\n"},
            "t.csv",
            {"caption_column": "x,y"},
        ),
    },
    "several captions": {
        "rows of one image": ({"t.csv": TABLE}, "t.csv", {}),
        "numbered columns": ({"t.csv": "image,caption_0,caption_1\na.png,a dog,two dogs\nb.png,a cat,\n"}, "t.csv", {}),
        "numbered from 9 to 10": (
            {"t.csv": "image,caption 10,caption 9\na.png,two dogs,a dog\nb.png,,a cat\n"},
            "t.csv",
            {},
        ),
        "numbered comments": ({"t.csv": "image,comment1,comment2\na.png,a dog,two dogs\nb.png,a cat,\n"}, "t.csv", {}),
        "the same name twice": ({"t.csv": "image,caption,caption\na.png,a dog,two dogs\nb.png,a cat,\n"}, "t.csv", {}),
        "a JSON list in a cell": (
            {"t.csv": 'image,captions\na.png,"[""a dog"", ""two dogs""]"\nb.png,"[""a cat""]"\n'},
            "t.csv",
            {},
        ),
        "a Python list in a cell": (
            {"t.csv": "image,captions\na.png,\"['a dog', 'two dogs']\"\nb.png,['a cat']\n"},
            "t.csv",
            {},
        ),
        "a NumPy list in a cell": (
            {"t.csv": "image,captions\na.png,\"['a dog' 'two dogs']\"\nb.png,['a cat']\n"},
            "t.csv",
            {},
        ),
        "a Python tuple in a cell": (
            {"t.csv": "image,captions\na.png,\"('a dog', 'two dogs')\"\nb.png,a cat\n"},
            "t.csv",
            {},
        ),
        "a Python set in a cell": (
            {"t.csv": "image,captions\na.png,\"{'a dog', 'two dogs'}\"\nb.png,a cat\n"},
            "t.csv",
            {},
        ),
        "an object in a cell": (
            {"t.csv": 'image,caption\na.png,"{""text"": [""a dog"", ""two dogs""]}"\nb.png,"{""text"": ""a cat""}"\n'},
            "t.csv",
            {},
        ),
        "objects with lists": (
            {
                "t.json": as_json(
                    [
                        {"image": "a.png", "caption": {"text": ["a dog", "two dogs"]}},
                        {"image": "b.png", "caption": "a cat"},
                    ]
                )
            },
            "t.json",
            {},
        ),
        "a list column": ({"t.json": as_json(RECORDS)}, "t.json", {}),
        "objects": (
            {
                "t.json": as_json(
                    [
                        {"image": "a.png", "sentences": [{"raw": "a dog"}, {"raw": "two dogs"}]},
                        {"image": "b.png", "sentences": [{"raw": "a cat"}]},
                    ]
                )
            },
            "t.json",
            {},
        ),
    },
    "encoding": {
        "UTF-8": ({"t.csv": TABLE.encode()}, "t.csv", {}),
        "UTF-8 with BOM": ({"t.csv": TABLE.encode("utf-8-sig")}, "t.csv", {}),
        "UTF-16 with BOM": ({"t.csv": TABLE.encode("utf-16")}, "t.csv", {}),
        "UTF-16 LE": ({"t.csv": TABLE.encode("utf-16-le")}, "t.csv", {}),
        "UTF-16 BE": ({"t.csv": TABLE.encode("utf-16-be")}, "t.csv", {}),
        "UTF-32": ({"t.csv": TABLE.encode("utf-32")}, "t.csv", {}),
        "UTF-16 text of Excel": ({"t.txt": table(delimiter="\t").encode("utf-16")}, "t.txt", {}),
        "JSON lines in UTF-16": ({"t.jsonl": "\n".join(map(as_json, RECORDS)).encode("utf-16")}, "t.jsonl", {}),
    },
    "JSON": {
        "list": ({"t.json": as_json(RECORDS)}, "t.json", {}),
        "lines": ({"t.jsonl": "\n".join(map(as_json, RECORDS))}, "t.jsonl", {}),
        "ndjson": ({"t.ndjson": "\n\n".join(map(as_json, RECORDS))}, "t.ndjson", {}),
        "lines called .json": ({"t.json": "\n".join(map(as_json, RECORDS))}, "t.json", {}),
        "list called .jsonl": ({"t.jsonl": as_json(RECORDS, indent=1)}, "t.jsonl", {}),
        "lines called .txt": ({"t.txt": "\n".join(map(as_json, RECORDS))}, "t.txt", {}),
        "columns": ({"t.json": as_json(PHOTO)}, "t.json", {}),
        "columns of pandas": (
            {"t.json": as_json({name: dict(enumerate(cells)) for name, cells in PHOTO.items()})},
            "t.json",
            {},
        ),
        "rows of pandas by number": ({"t.json": as_json(dict(enumerate(RECORDS)))}, "t.json", {}),
        "a split table of pandas": (
            {"t.json": as_json({"columns": ROWS[0], "index": [0, 1, 2], "data": ROWS[1:]})},
            "t.json",
            {},
        ),
        "lists": ({"t.json": as_json(ROWS)}, "t.json", {}),
        "lists without a header": ({"t.json": as_json(ROWS[1:])}, "t.json", {}),
        "names without endings": (
            {"t.json": as_json({"x/a": {"caption": ["a dog", "two dogs"], "tags": "x"}, "x/b": {"caption": "a cat"}})},
            "t.json",
            {},
        ),
        "a list inside": ({"t.json": as_json({"version": 1, "data": RECORDS})}, "t.json", {}),
        "names": ({"t.json": as_json(NAMES)}, "t.json", {}),
        "names of objects": (
            {"t.json": as_json({"a.png": {"caption": ["a dog", "two dogs"]}, "b.png": {"text": "a cat"}})},
            "t.json",
            {},
        ),
        "COCO": ({"t.json": as_json(COCO)}, "t.json", {}),
        "Karpathy": ({"t.json": as_json(KARPATHY)}, "t.json", {}),
    },
    "Flickr8k": {
        "tokens": ({"t.token.txt": "a.png#0\ta dog\na.png#1\ttwo dogs\nb.png#0\ta cat\n"}, "t.token.txt", {}),
        "tokens of Windows": ({"t.token": "a.png#0\ta dog\r\na.png#1\ttwo dogs\r\nb.png#0\ta cat\r\n"}, "t.token", {}),
        "Kaggle": ({"captions.txt": TABLE}, FOLDER, {}),
    },
    "Excel": {
        "sheet": (lambda: {"t.xlsx": workbook(ROWS)}, "t.xlsx", {}),
        "second sheet": (
            lambda: {"t.xlsx": workbook([["notes"]], ROWS)},
            "t.xlsx",
            {},
        ),
        "several sheets": (lambda: {"t.xlsx": workbook(ROWS[:3], [ROWS[0], ROWS[3]])}, "t.xlsx", {}),
        "a title above": (lambda: {"t.xlsx": workbook([["My photos"], [], *ROWS])}, "t.xlsx", {}),
        "empty rows": (
            lambda: {"t.xlsx": workbook([[], *ROWS, [None, None], ["", ""]])},
            "t.xlsx",
            {},
        ),
    },
    "Parquet": {
        "rows": ({"t.parquet": parquet(PHOTO)}, "t.parquet", {}),
        "lists": (
            {"t.parquet": parquet({"File": ["a.png", "b.png"], "captions": [["a dog", "two dogs"], ["a cat"]]})},
            "t.parquet",
            {},
        ),
    },
    "text files beside the images": {
        "txt": ({"a.txt": "a dog\ntwo dogs\n", "b.txt": "a cat"}, FOLDER, {}),
        "caption": ({"a.caption": "a dog\n\ntwo dogs", "b.caption": "a cat\n"}, FOLDER, {}),
        "mixed": ({"a.txt": "a dog\r\ntwo dogs", "b.caption": "a cat"}, FOLDER, {}),
        "with the image's ending": ({"a.png.txt": "a dog\ntwo dogs", "b.png.txt": "a cat"}, FOLDER, {}),
        "json": (
            {"a.json": as_json({"captions": ["a dog", "two dogs"]}), "b.json": as_json({"caption": "a cat"})},
            FOLDER,
            {},
        ),
        "other capitals": ({"A.TXT": "a dog\ntwo dogs", "B.txt": "a cat"}, FOLDER, {}),
        "in a folder of their own": ({"captions/a.txt": "a dog\ntwo dogs", "captions/b.txt": "a cat"}, FOLDER, {}),
        "with a byte order mark": ({"a.txt": "\ufeffa dog\r\ntwo dogs", "b.txt": "a cat".encode("utf-16")}, FOLDER, {}),
        "of img2dataset": (
            {
                "00000/a.png": b"",
                "00000/a.txt": "a dog\ntwo dogs",
                "00000/a.json": as_json({"caption": "x", "url": "u"}),
                "00000/b.png": b"",
                "00000/b.txt": "a cat",
                "00000.parquet": parquet({"url": ["u"], "caption": ["x"]}),
                "00000_stats.json": as_json({"count": 2}),
            },
            FOLDER,
            {},
        ),
        "beside a license": ({"a.txt": "a dog\ntwo dogs", "b.txt": "a cat", "LICENSE.txt": "yours"}, FOLDER, {}),
    },
    "folder with a table": {
        "captions.csv": ({"captions.csv": TABLE}, FOLDER, {}),
        "metadata.csv": ({"metadata.csv": table("file_name", "text")}, FOLDER, {}),
        "metadata.jsonl": ({"metadata.jsonl": "\n".join(map(as_json, RECORDS))}, FOLDER, {}),
        "metadata.csv with semicolons": ({"metadata.csv": table("Path", "Alt", ";")}, FOLDER, {}),
        "another name": ({"my photos.csv": TABLE}, FOLDER, {}),
        "another name, Excel": (lambda: {"Mappe1.xlsx": workbook(ROWS)}, FOLDER, {}),
        "another name, names in JSON": ({"labels.json": as_json(NAMES)}, FOLDER, {}),
        "beside a readme": ({"list.csv": TABLE, "README.txt": "hello, you\n"}, FOLDER, {}),
        "hidden files": ({"list.csv": TABLE, "._list.csv": b"\0\5\x16\7"}, FOLDER, {}),
    },
    "ZIP archive": {
        "table": (lambda: {"t.zip": archive({"captions.csv": TABLE, **IMAGES})}, "t.zip", {}),
        "in a folder": (
            lambda: {"t.zip": archive({"my/captions.csv": TABLE, "my/Photos/a.PNG": b"", "my/Photos/b.png": b""})},
            "t.zip",
            {},
        ),
        "in a folder of a folder": (
            lambda: {
                "t.zip": archive({"my/set/captions.csv": TABLE, "my/set/img/a.png": b"", "my/set/img/b.png": b""})
            },
            "t.zip",
            {},
        ),
        "text files": (
            lambda: {"t.zip": archive({"a.txt": "a dog\ntwo dogs", "b.txt": "a cat", **IMAGES})},
            "t.zip",
            {},
        ),
        "of a Mac": (
            lambda: {"t.zip": archive({"x/t.csv": TABLE, "x/a.png": "", "x/b.png": "", "__MACOSX/x/._t.csv": b"\0"})},
            "t.zip",
            {},
        ),
        "COCO": (
            lambda: {
                "t.zip": archive(
                    {
                        "annotations/captions_train2017.json": as_json(COCO),
                        "train2017/a.png": b"",
                        "train2017/b.png": b"",
                    }
                )
            },
            "t.zip",
            {},
        ),
    },
    "path of an image": {
        "Windows": ({"t.csv": with_path("C:\\Users\\Me\\Pictures\\a.png")}, "t.csv", {}),
        "Windows, relative": ({"t.csv": with_path(".\\a.png")}, "t.csv", {}),
        "mixed slashes": ({"t.csv": with_path("photos/new\\a.png")}, "t.csv", {}),
        "one image by two spellings": ({"t.csv": TABLE.replace("a.png,two", "./a.png,two")}, "t.csv", {}),
        "another home": ({"t.csv": with_path("/home/someone/photos/a.png")}, "t.csv", {}),
        "file://": ({"t.csv": with_path("file:///data/a.png")}, "t.csv", {}),
        "capitals": ({"t.csv": with_path("A.PNG")}, "t.csv", {}),
        "no ending": ({"t.csv": with_path("a")}, "t.csv", {}),
        "spaces around": ({"t.csv": with_path("  a.png ")}, "t.csv", {}),
        "as addresses are written": ({"t.csv": with_path("%61.png")}, "t.csv", {}),
        "subfolder": ({"t.csv": with_path("x/y/a.png")}, "t.csv", {}),
    },
    "webdataset shards": {
        "jpg, txt": (
            {"s.tar": shard({"a.jpg": b"x", "a.txt": b"a dog\ntwo dogs", "b.jpg": b"x", "b.txt": b"a cat"})},
            "s.tar",
            {},
        ),
        "dots in names": (
            {
                "s.tar": shard(
                    {"a.v1.jpg": b"x", "a.v1.txt": b"a dog\ntwo dogs", "b.v1.jpg": b"x", "b.v1.txt": b"a cat"}
                )
            },
            "s.tar",
            {},
        ),
        "mixed endings": (
            {"s.tar": shard({"a.JPEG": b"x", "a.txt": b"a dog\ntwo dogs", "b.gif": b"x", "b.caption": b"a cat"})},
            "s.tar",
            {},
        ),
        "json": (
            {
                "s.tar": shard(
                    {
                        "a.webp": b"x",
                        "a.json": as_json({"captions": ["a dog", "two dogs"]}).encode(),
                        "b.tiff": b"x",
                        "b.json": b'{"Text": "a cat"}',
                    }
                )
            },
            FOLDER,
            {},
        ),
    },
}
CASES = [(group, case) for group, cases in LAYOUTS.items() for case in cases]


@pytest.fixture
def put(tmp_path):
    """Writes files, and the images a.png and b.png unless they are in the files."""

    def put(files, images=True):
        files = files() if callable(files) else files
        for name, content in {**(IMAGES if images else {}), **files}.items():
            path = tmp_path / "set" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return tmp_path / "set"

    return put


def rows_of(source: Path, **options) -> dict[str, tuple[str, ...]]:
    """The captions of a source by image file name."""
    found = recognize(source, ReadingOptions(**options))
    if isinstance(found, Shards):
        rows = [row for files in found.files.values() for row in shard_rows(files)]
        return {f"{row['image_id'][0]}.png": tuple(row["captions"]) for row in rows if row["image"]["bytes"] == b"x"}
    assert isinstance(found, ListedSource)
    images, _ = locate_images(found.captions.entries, found.captions.folder, outside=found.is_own)
    assert all(image.num_bytes >= 0 for image in images)
    names = [Path(image.path.split("::")[0]).name.lower() for image in images]
    assert len(names) == len(set(names))
    return dict(zip(names, (image.captions for image in images), strict=True))


@pytest.mark.parametrize(("group", "case"), CASES)
def test_every_layout_gives_the_same_rows(put, group, case):
    files, source, options = LAYOUTS[group][case]
    folder = put(files, images=group not in ("ZIP archive", "webdataset shards") and case != "of img2dataset")
    assert rows_of(folder / source, **options) == EXPECTED


def test_about_a_hundred_files_are_read():
    assert len(CASES) >= 100


def test_the_table_of_the_docs_has_a_row_for_each_group_of_these_and_no_other():
    table = DOCS.read_text().partition("## Layouts")[2].partition("\n## ")[0]
    first_cells = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")][2:]
    assert sorted(first_cells) == sorted(LAYOUTS)


def test_the_docs_name_every_column_that_is_recognized():
    from hf_gru_captioner.data.columns import CAPTION_NAMES, IMAGE_NAMES

    text = DOCS.read_text()
    assert [name for name in (*IMAGE_NAMES, *CAPTION_NAMES) if f"`{name}`" not in text] == []


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
@pytest.mark.parametrize("written", ["NFC", "NFD"])
def test_accents_match_in_both_unicode_forms(put, stored, written):
    name = "b\u00e4r.png"
    rows = f"image,caption\n{unicodedata.normalize(written, name)},x\n"
    folder = put({unicodedata.normalize(stored, name): b"", "t.csv": rows})
    assert list(map(len, rows_of(folder / "t.csv").values())) == [1]


def test_a_name_that_may_be_two_files_is_neither(put):
    folder = put({"C.png": b"", "c.PNG": b"", "t.csv": "image,caption\nc.png,x\na.png,y\n"})
    found = recognize(folder / "t.csv", ReadingOptions())
    images, _ = locate_images(found.captions.entries, found.captions.folder)
    assert [image.num_bytes for image in images] == [-1, 0]


@pytest.mark.parametrize("text", ["None", "NA", "nan", "null", "N/A", "True", "1"])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "metadata.csv"])
def test_words_that_other_readers_take_for_nothing_stay_text(put, text, name):
    delimiter = "\t" if name.endswith("tsv") else ","
    folder = put({name: f"image{delimiter}caption\na.png{delimiter}{text}\n"})
    assert rows_of(folder / name) == {"a.png": (text,)}


def test_captions_that_are_left_out_are_counted_with_their_rows(put):
    folder = put({"t.csv": "image,caption\na.png,a dog\na.png,\nb.png,!?\nb.png,a cat\na.png,\U0001f415\U0001f415\n"})
    found = recognize(folder / "t.csv", ReadingOptions())
    empty, wordless = found.captions.notices
    assert "t.csv: 1 caption is empty, and left out (row 3)." in empty
    assert "2 captions are without a word, such as punctuation or emoji, and left out (row 4, row 6)." in wordless
    assert [entry.captions for entry in found.captions.entries] == [("a dog",), ("a cat",)]


def test_images_in_two_splits_are_counted_with_their_rows(put):
    folder = put({"t.csv": "image,caption,split\na.png,a dog,train\nb.png,a cat,train\na.png,two dogs,val\n"})
    (notice,) = recognize(folder / "t.csv", ReadingOptions()).captions.notices
    assert "1 image is in two splits" in notice
    assert "'a.png' in train (row 2), in validation (row 4)" in notice


def test_a_short_row_is_counted_and_blank_numbered_columns_are_not(put):
    folder = put({"t.csv": "image,caption_0,caption_1\na.png,a dog,\nb.png,a cat,\nb.png\n"})
    (notice,) = recognize(folder / "t.csv", ReadingOptions()).captions.notices
    assert "1 caption is empty, and left out (row 4)." in notice


def test_a_row_of_json_lines_without_captions_is_a_row_without_captions(put):
    folder = put({"t.jsonl": '{"image": "a.png", "caption": "a dog"}\n{"image": "b.png"}\n'})
    _, other = recognize(folder / "t.jsonl", ReadingOptions()).captions.entries
    assert (other.path, other.captions, other.where) == ("b.png", (), "row 2")


def test_letters_that_were_lost_are_counted(put):
    folder = put({"t.csv": "image,caption\na.png,M\ufffddchen\nb.png,a cat\n"})
    (notice,) = recognize(folder / "t.csv", ReadingOptions()).captions.notices
    assert "1 image has a caption with \ufffd in place of letters that another program lost (row 2)" in notice


@pytest.mark.parametrize("caption", ["1\ufe0f\u20e3", "\u2139\ufe0f", "\U0001f600!"])
def test_emoji_of_digits_and_letters_are_no_words(caption):
    from hf_gru_captioner.data.columns import has_words

    assert not has_words(caption)
    assert has_words(f"{caption} 1")


@pytest.mark.parametrize(
    ("column", "cells", "splits"),
    [
        ("split", ("fold1", "fold2"), ["fold1", "fold2"]),
        ("Subset", ("Train", "dev"), ["train", "validation"]),
        ("set", ("train", "test"), ["train", "test"]),
        ("set", ("Lego", "Duplo"), [None, None]),
    ],
)
def test_splits_are_in_a_column_of_several_names_if_its_cells_are_splits(put, column, cells, splits):
    folder = put({"t.csv": f"image,caption,{column}\na.png,a dog,{cells[0]}\nb.png,a cat,{cells[1]}\n"})
    assert [entry.split for entry in recognize(folder / "t.csv", ReadingOptions()).captions.entries] == splits


def test_sheets_that_are_called_like_splits_are_these(put):
    openpyxl = pytest.importorskip("openpyxl")
    book, file = openpyxl.Workbook(), io.BytesIO()
    book.active.title = "Train"
    for sheet, row in ((book.active, ROWS[1]), (book.create_sheet("val"), ROWS[2])):
        sheet.append(ROWS[0])
        sheet.append(row)
    book.save(file)
    entries = recognize(put({"t.xlsx": file.getvalue()}) / "t.xlsx", ReadingOptions()).captions.entries
    assert [(entry.path, entry.split) for entry in entries] == [("a.png", "train"), ("b.png", "validation")]


@pytest.mark.parametrize(
    ("beside", "said"),
    [
        ({"metadata.jsonl": "{}"}, "captions from captions.csv; not read: metadata.jsonl"),
        ({"a.txt": "x", "b.txt": "y"}, "captions from captions.csv; not read: text files beside 2 images"),
    ],
)
def test_captions_that_are_not_read_beside_a_table_are_named(put, beside, said):
    (sentence,) = recognize(put({"captions.csv": TABLE, **beside}), ReadingOptions()).captions.columns
    assert said in sentence


def test_a_text_file_in_another_unicode_form_is_beside_its_image(put):
    names = [unicodedata.normalize(form, "b\u00e4r") for form in ("NFC", "NFD")]
    folder = put({f"{names[0]}.png": b"", f"{names[1]}.txt": "a bear"}, images=False)
    (entry,) = recognize(folder, ReadingOptions()).captions.entries
    assert (entry.path, entry.captions) == (f"{names[0]}.png", ("a bear",))


def test_an_archive_that_is_written_anew_is_read_anew(put):
    from hf_gru_captioner.data.folders import read_member

    for content in (b"a dog", b"two dogs and a cat"):
        path = put({"t.zip": archive({"a.txt": content, "a.png": b""})}) / "t.zip"
        assert read_member(str(path), "a.txt") == content


def test_files_of_an_image_that_are_apart_in_a_shard_are_refused_with_the_command(put):
    files = {"a.jpg": b"x", "b.jpg": b"x", "a.txt": b"a dog", "b.txt": b"a cat"}
    path = put({"s.tar": shard(files)}) / "s.tar"
    with pytest.raises(ValueError, match=r"s\.tar: the files of a are not next to each other.* tar --sort=name"):
        list(shard_rows([str(path)]))


def test_columns_that_might_have_been_meant_are_named(put):
    folder = put({"t.csv": "title,image,caption\nx,a.png,a dog\n"})
    (said,) = recognize(folder / "t.csv", ReadingOptions()).captions.columns
    assert "images from column 'image', captions from 'caption'; not read: title" in said


# what is wrong -> (files, source, what is said)
FAULTS = {
    "an open quotation mark that takes rows in": (
        {"t.csv": 'image,caption\na.png,x\na.png,"a dog\nb.png,a cat"\nb.png,y\n'},
        "t.csv",
        r"t\.csv, row 3: a quotation mark that opens in line 3 swallows the rows up to line 4.*b\.png,a cat",
    ),
    "an open quotation mark up to the end": (
        {"t.csv": 'image,caption\na.png,"a dog\nb.png,a cat\n'},
        "t.csv",
        r"row 2: the quotation mark that opens in line 2 is never closed: close it",
    ),
    "an open quotation mark up to the next": (
        {"t.csv": 'image,caption\na.png,"a dog\nb.png,"a cat"\n'},
        "t.csv",
        r"row 2: a quotation mark opens or closes in the middle of a cell in lines 2 to 3.*written twice",
    ),
    "an open quotation mark among names without endings": (
        {"t.csv": 'image,caption\na,"a dog\nb,a cat"\nb,y\n'},
        "t.csv",
        r"row 2: a quotation mark that opens in line 2 swallows the rows up to line 3, such as 'b,a cat'",
    ),
    "an object in a cell without a text": (
        {"t.csv": 'image,caption\na.png,"{""x"": 5}"\n'},
        "t.csv",
        r"row 2: a caption is an object without a text under raw, sentence, caption, text, found \{'x': 5\}",
    ),
    "an object in a cell that can't be read": (
        {"t.csv": 'image,caption\na.png,"{""text"": 5"\n'},
        "t.csv",
        r"row 2: a cell begins like an object.*Write the caption alone",
    ),
    "a zero byte": ({"t.csv": TABLE.replace("a cat", "a \0cat")}, "t.csv", r"t\.csv has a zero byte in line 3"),
    "a pointer of Git LFS": (
        {"t.csv": "version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 1\n"},
        "t.csv",
        r"t\.csv is a Git LFS pointer instead of the file: git lfs pull",
    ),
    "boxes in place of captions": (
        {"a.txt": "0 0.5 0.5 1 1\n", "b.txt": "7 .1 .2 .3 .4\n1 .5 .5 1 1\n"},
        FOLDER,
        r"a\.txt has numbers alone, as the boxes of a detector",
    ),
    "three columns without a header": (
        {"t.csv": "1,a.png,a dog\n2,b.png,a cat\n"},
        "t.csv",
        r"--data\.image-column=NAME, and put a row with the columns' names above the first, which has an image",
    ),
    "a list in a cell that can't be read": (
        {"t.csv": "image,captions\na.png,\"['a dog', 'two\"\n"},
        "t.csv",
        r"row 2: a cell begins like a list.*Write it as",
    ),
    "a list of other things": (
        {"t.csv": 'image,captions\nb.png,x\na.png,"[""a dog"", 5]"\n'},
        "t.csv",
        r"row 3: a caption must be text, found 5",
    ),
    "commas without quotes": ({"t.csv": TABLE + "a.png,a dog, red\n"}, "t.csv", r"row 5: more cells .* Quote captions"),
    "another encoding": (
        {"t.csv": "image,caption\na.png,ein Mädchen läuft über die Straße\n".encode("cp1252")},
        "t.csv",
        r"t\.csv is not UTF-8 text \(byte 0xe4 in line 2\): save it as UTF-8\. The encoding that fits is cp1252: iconv",
    ),
    "Chinese in another encoding": (
        {"t.csv": "image,caption\na.png,一只狗在草地上奔跑，一个孩子在看\n".encode("gb18030")},
        "t.csv",
        r"fits is (gb18030|gbk)",
    ),
    "half of UTF-16": (
        {"t.csv": TABLE.encode("utf-16")[:-1]},
        "t.csv",
        r"is not whole UTF-16 text .*: save it as UTF-8",
    ),
    "no column of captions": (
        {"t.csv": "image,words\na.png,x\n"},
        "t.csv",
        r"no captions in a known layout: name the column with --data\.caption-column=NAME\. .*: image, words",
    ),
    "no column of images": ({"t.csv": "who,caption\na,x\n"}, "t.csv", r"no image path .*Columns found: who, caption"),
    "a column that is not there": (
        {"t.csv": TABLE},
        "t.csv --data.caption-column=words",
        r"no column 'words'\. Columns found: image, caption",
    ),
    "an empty file": ({"t.csv": " \n"}, "t.csv", r"t\.csv is empty"),
    "a header alone": ({"t.csv": "image,caption\n"}, "t.csv", r"t\.csv has no rows"),
    "a torn line": ({"t.jsonl": '{"image": "a.png", "caption": "x"}\n{"ima'}, "t.jsonl", r"row 2: line 2 is not JSON"),
    "torn JSON": ({"t.json": '[{"image": "a.png",\n'}, "t.json", r"t\.json is not one JSON value"),
    "a number for a caption": (
        {"t.json": '[{"image": "a.png", "caption": 5}]'},
        "t.json",
        r"row 1: a caption must be text",
    ),
    "unknown keys": ({"t.json": '{"info": 1}'}, "t.json", r"Top-level keys found: info\. Known: COCO"),
    "objects of COCO": (
        {"t.json": as_json({"images": [], "annotations": [{"image_id": 1, "bbox": []}]})},
        "t.json",
        r"captions_\*\.json",
    ),
    "an old workbook": (
        {"t.xls": b"\xd0\xcf"},
        "t.xls",
        r"not a known kind of caption file: save it as \.xlsx or \.csv",
    ),
    "a packed table": ({"t.csv.gz": b"\x1f\x8b"}, "t.csv.gz", r"not a known kind of caption file: unpack it"),
    "a torn workbook": ({"t.xlsx": b"PK\3\4torn"}, "t.xlsx", r"t\.xlsx"),
    "torn Parquet": ({"t.parquet": b"PAR1torn"}, "t.parquet", r"t\.parquet can't be read, it may be damaged"),
    "a torn archive": ({"t.zip": b"PK\3\4torn"}, "t.zip", r"t\.zip can't be read as a ZIP archive"),
    "an archive without captions": (
        lambda: {"t.zip": archive(IMAGES)},
        "t.zip",
        r"t\.zip has no captions: put a table",
    ),
    "a torn shard": ({"t.tar": b"torn"}, "t.tar", r"t\.tar is no tar archive, or it is damaged"),
    "images elsewhere": (
        {"t.csv": "image,caption\nx/no.png,x\n"},
        "t.csv",
        r"None of the 1 images exists, .*'x/no\.png' \(row 2\).*the folder of the images with --data\.images\.",
    ),
    "a folder that is none": (
        {"t.csv": TABLE},
        "t.csv --data.images=/nowhere",
        r"--data\.images=/nowhere is not a folder",
    ),
    "a single image": ({}, "a.png", r"a\.png is a single image\. At least 2 images with captions are needed"),
    "a table of one image": (
        {"t.csv": "image,caption\na.png,x\n"},
        "t.csv",
        r"it has 1 image, and at least 2 are needed, one to train on",
    ),
    "images alone": ({}, FOLDER, r"has 2 images and no captions: put a table .*captions\.csv.*photo\.txt"),
    "several tables": (
        {"x.csv": TABLE, "y.csv": TABLE},
        FOLDER,
        r"several tables of captions: name one .*x\.csv, y\.csv",
    ),
    "a table of another name that can't be read": (
        {"x.csv": "image,words\na.png,x\n"},
        FOLDER,
        r"x\.csv has no captions in a known layout",
    ),
    "no such file": ({}, "no.csv", r"no\.csv does not exist: name a caption file"),
    "no such split": (
        {"t.csv": TABLE.replace("\n", ",test\n").replace("caption,test", "caption,split")},
        "t.csv",
        r"has no split 'train', it has test",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_read_ends_in_one_line_with_its_place_and_the_remedy(put, capsys, tmp_path, fault):
    files, source, said = FAULTS[fault]
    if "workbook" in fault:
        pytest.importorskip("openpyxl")
    source, *options = source.split(" ")
    source = put(files) / source
    assert main(["train", f"--data.source={source}", f"--output-dir={tmp_path / 'run'}", *options]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("gru-captioner: ")
    assert re.search(said, line), line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--output-dir=run", "--data.source"],
        ["features", "--output-dir=run", "--data.source"],
        ["score", "--data"],
    ],
)
def test_refusals_come_before_heavy_libraries_are_loaded(put, command):
    source = put({"t.csv": 'image,caption\na.png,"a dog\nb.png,a cat\n'}) / "t.csv"
    code = (
        "import sys\nfrom hf_gru_captioner.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "print(code, sorted({'torch', 'transformers', 'datasets', 'accelerate'} & set(sys.modules)))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code, *command, str(source)], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.strip() == "2 []", done.stderr
    assert "row 2: the quotation mark that opens in line 2 is never closed" in done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2  # seconds of the processor
