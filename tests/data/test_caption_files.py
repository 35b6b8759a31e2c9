import json

import pytest

from hf_gru_captioner.data.caption_files import ImageEntry, caption_files, read_caption_file, split_of
from hf_gru_captioner.data.folders import DiskFolder
from hf_gru_captioner.data.recognition import locate_images


@pytest.fixture
def write(tmp_path):
    """Writes a file, text unchanged and anything else as JSON."""

    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


def plain(entries):
    """Entries without their row numbers."""
    return [entry._replace(where="") for entry in entries]


def located(entries, *arguments, **options):
    """The images that `locate_images` finds."""
    return locate_images(entries, *arguments, **options)[0]


DOG = ("a dog", "two dogs")
TABLES = {
    "t.csv": "image,caption\na.jpg,a dog\nb.jpg,a cat\na.jpg, two dogs\n",
    "bom.csv": "\ufefffile_name,caption\na.jpg,a dog\nb.jpg,a cat\na.jpg,two dogs\n",
    "semicolons.csv": "path;caption_0;caption_1\na.jpg;a dog;two dogs\nb.jpg;a cat;\n",
    "t.tsv": "filepath\ttext\na.jpg\ta dog\nb.jpg\ta cat\na.jpg\ttwo dogs\n",
    "captions.txt": 'image,caption\na.jpg,"a dog"\nb.jpg,a cat\na.jpg,two dogs\n',
    "rows.jsonl": '{"image": "a.jpg", "caption": "a dog"}\n\n{"image": "b.jpg", "caption": "a cat"}\n'
    '{"image": "a.jpg", "caption": "two dogs"}\n',
    "lists.jsonl": '{"image_path": "a.jpg", "captions": ["a dog", "two dogs"]}\n'
    '{"image_path": "b.jpg", "captions": ["a cat"]}\n',
    "list.json": '[{"image": "a.jpg", "sentences": [{"raw": "a dog"}, {"raw": "two dogs"}]},'
    ' {"image": "b.jpg", "sentences": [{"raw": "a cat"}]}]',
    "Flickr8k.token.txt": "a.jpg#0\ta dog\na.jpg#1\ttwo dogs\nb.jpg#0\ta cat\n",
    "results.token": "a.jpg#0\ta dog\na.jpg#1\ttwo dogs\nb.jpg#0\ta cat\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_rows_of_one_photo_become_one_photo_with_all_captions(write, name):
    photos = plain(read_caption_file(write(name, TABLES[name])))
    assert photos == [ImageEntry("a.jpg", DOG, None, "a.jpg"), ImageEntry("b.jpg", ("a cat",), None, "b.jpg")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "t.jsonl",
            """
            {"image": "a.jpg", "captions": ["a dog", "", "two dogs"], "caption_weights": [1, 9, 0.5]}
            {"image": "b.jpg", "captions": ["a cat"]}
            {"image": "b.jpg", "caption": "cats", "caption_weights": 2}
            """,
        ),
        (
            "t.csv",
            "image,caption,caption_weights\na.jpg,a dog,1\na.jpg,two dogs,0.5\nb.jpg,a cat,\nb.jpg,cats,[2]\n",
        ),
    ],
)
def test_captions_of_a_table_may_have_weights(write, name, content):
    dog, cat = read_caption_file(write(name, content))
    assert (dog.captions, dog.caption_weights) == (DOG, (1.0, 0.5))
    assert (cat.captions, cat.caption_weights) == (("a cat", "cats"), (1.0, 2.0))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 1], "must have a number for each caption, found 2 for 1"),
        ([0], "must be above 0 and at most 1000, found 0"),
        (["much"], "must be above 0 and at most 1000, found 'much'"),
        ([float("nan")], "must be above 0 and at most 1000, found nan"),
        ([True], "must be above 0 and at most 1000, found True"),
    ],
)
def test_weights_of_captions_are_numbers_above_0(write, weights, message):
    path = write("t.json", [{"image": "a.jpg", "caption": "a dog", "caption_weights": weights}])
    with pytest.raises(ValueError, match=f"t.json, row 1: .*{message}"):
        read_caption_file(path)


def test_brackets_in_brackets_are_no_weights(write):
    path = write("t.csv", f"image,caption,caption_weights\na.jpg,a dog,{'[' * 100_000}\n")
    with pytest.raises(ValueError, match=r"t\.csv, row 2: "):
        read_caption_file(path)


def test_quoted_captions_keep_their_commas(write):
    photos = read_caption_file(write("t.csv", 'image,caption\na.jpg,"a dog, a ""good"" one"\n'))
    assert photos[0].captions == ('a dog, a "good" one',)


def test_splits_and_ids_of_a_table_come_from_its_columns_else_from_its_name(write):
    text = "image,caption,split,image_id\na.jpg,a dog,train,7\nb.jpg,a cat,val,8\nc.jpg,a cow,odd,9\n"
    assert [(photo.split, photo.image_id) for photo in read_caption_file(write("test.csv", text))] == [
        ("train", "7"),
        ("validation", "8"),
        ("odd", "9"),
    ]
    assert read_caption_file(write("captions_dev.csv", "image,caption\na.jpg,a dog\n"))[0].split == "validation"


def test_splits_are_words_of_a_name():
    names = ("captions_val2017", "train-000", "Flickr_8k.dev", "validated", "trainer", "restval", "testing_2")
    splits = ["validation", "train", "validation", None, None, "train", "test"]
    assert [split_of(name) for name in names] == splits


def test_coco_captions_are_joined_to_their_images_by_number(write):
    content = {
        "images": [{"id": 42, "file_name": "a.jpg"}, {"id": 7, "file_name": "b.jpg"}, {"id": 8, "file_name": "c.jpg"}],
        "annotations": [
            {"image_id": 7, "id": 1, "caption": "a cat"},
            {"image_id": 42, "id": 2, "caption": "a dog "},
            {"image_id": 42, "id": 3, "caption": "two dogs"},
        ],
    }
    photos = plain(read_caption_file(write("captions_val2014.json", content)))
    assert photos == [
        ImageEntry("a.jpg", DOG, "validation", "42"),
        ImageEntry("b.jpg", ("a cat",), "validation", "7"),
        ImageEntry("c.jpg", (), "validation", "8"),
    ]


def test_karpathys_restval_is_train_and_val_is_validation(write):
    def image(name, split, **more):
        return {"filename": name, "split": split, "sentences": [{"raw": "a dog"}, {"raw": "two dogs"}], **more}

    images = [
        image("a.jpg", "train"),
        image("b.jpg", "restval", filepath="val2014", cocoid=12),
        image("c.jpg", "val"),
        image("d.jpg", "test"),
    ]
    assert plain(read_caption_file(write("dataset.json", {"images": images, "dataset": "coco"}))) == [
        ImageEntry("a.jpg", DOG, "train", "a.jpg"),
        ImageEntry("val2014/b.jpg", DOG, "train", "12"),
        ImageEntry("c.jpg", DOG, "validation", "c.jpg"),
        ImageEntry("d.jpg", DOG, "test", "d.jpg"),
    ]


@pytest.mark.parametrize("name", ["Flickr8k.token.txt", "captions.txt"])
def test_flickr8ks_lists_give_the_splits_and_leave_out_photos_of_no_list(write, name):
    names = "abcd"
    if name == "captions.txt":
        text = "image,caption\n" + "".join(f"{each}.jpg,a dog\n" for each in names)
    else:
        text = "".join(f"{each}.jpg#0\ta dog\n" for each in names)
    path = write(name, text)
    write("Flickr_8k.trainImages.txt", "a.jpg\n")
    write("Flickr_8k.devImages.txt", "b.jpg\n")
    write("Flickr8k_text/Flickr_8k.testImages.txt", "c.jpg\n")
    assert {photo.path: photo.split for photo in read_caption_file(path)} == {
        "a.jpg": "train",
        "b.jpg": "validation",
        "c.jpg": "test",
    }


def test_caption_files_of_a_folder_are_known_by_name_and_content(write, tmp_path):
    def found():
        return caption_files(DiskFolder(tmp_path))

    assert found() == []
    write("dataset_info.json", {"images": 3})
    assert found() == []
    write("dataset_flickr8k.json", {"images": [{"filename": "a.jpg", "sentences": []}]})
    assert found() == ["dataset_flickr8k.json"]
    write("captions.txt", "image,caption\n")
    assert found() == ["captions.txt"]
    write("Flickr8k.token.txt", "a.jpg#0\ta dog\n")
    assert found() == ["Flickr8k.token.txt"]
    write("annotations/captions_val2014.json", {})
    assert found() == ["annotations/captions_val2014.json"]
    newer = [f"annotations/captions_{split}2017.json" for split in ("train", "val")]
    for name in newer:
        write(name, {})
    assert found() == newer


def photo_of(path, split=None):
    return ImageEntry(path, ("a dog",), split, path)


@pytest.mark.parametrize("folder", [".", "images", "Images", "Flicker8k_Dataset", "Flickr8k_Dataset", "train2017"])
def test_photos_are_found_in_the_usual_places(write, tmp_path, folder):
    path = write(f"{folder}/a.jpg", "1234")
    (found,) = located([photo_of("a.jpg")], tmp_path)
    assert (found.path, found.num_bytes) == (str(path), 4)
    assert found.mtime_ns == path.stat().st_mtime_ns


def test_photos_are_found_beside_the_annotations_folder_and_where_images_says(write, tmp_path):
    path = write("val2017/a.jpg", "")
    assert located([photo_of("a.jpg")], tmp_path / "annotations")[0].path == str(path)
    elsewhere = write("elsewhere/deep/a.jpg", "")
    assert located([photo_of("deep/a.jpg")], tmp_path, tmp_path / "elsewhere")[0].path == str(elsewhere)
    assert located([photo_of("deep/a.jpg")], tmp_path, tmp_path / "elsewhere" / "deep")[0].path == str(elsewhere)
    assert located([photo_of(str(elsewhere))], tmp_path / "annotations")[0].path == str(elsewhere)


def test_a_name_in_the_folders_of_two_splits_means_the_photo_of_its_own_split(write, tmp_path):
    ours = {
        split: write(f"{folder}/1.jpg", "") for split, folder in (("train", "train2017"), ("validation", "val2017"))
    }
    for split, path in ours.items():
        assert located([photo_of("1.jpg", split)], tmp_path)[0].path == str(path)


def test_bare_names_are_not_looked_for_where_they_come_twice(write, tmp_path):
    write("1.jpg", "")
    photos = [photo_of("1.jpg"), photo_of("other/1.jpg")]
    assert [found.num_bytes for found in located(photos, tmp_path)] == [0, -1]


def test_when_no_photo_is_there_the_places_are_named(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        locate_images([photo_of("a.jpg")], tmp_path / "annotations")
    for part in (
        f"'a.jpg'. Searched: {tmp_path / 'annotations'}, {tmp_path} and",
        "images,",
        "train2017",
        "images=",
    ):
        assert part in str(error.value)


FAULTS = {
    "columns of a table": (
        "t.csv",
        "image,words\na.jpg,hi\n",
        r"no captions in .*Columns found: image, words\. Known:",
    ),
    "no path in a table": ("t.csv", "foto,caption\na.jpg,hi\n", r"no image path in .*Columns found: foto, caption"),
    "no rows": ("t.csv", "image,caption\n", "has no rows"),
    "commas without quotes": ("t.csv", "image,caption\na.jpg,a dog, red\n", "row 2: more cells than the header's 2"),
    "keys of a json": ("t.json", {"info": 1, "photos": []}, r"Top-level keys found: info, photos\. Known: COCO"),
    "neither JSON nor JSON lines": ("t.json", '{"a": 1}\n{"a": 2', "row 2: line 2 is not JSON"),
    "COCO objects": (
        "instances_val2017.json",
        {"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "bbox": []}]},
        r"annotations of objects.*captions_",
    ),
    "a torn line": ("t.jsonl", '{"image": "a", "caption": "x"}\n{"ima', "row 2: line 2 is not JSON"),
    "a line that is no row": ("t.jsonl", "[1]\n", r"row 1: found '\[1\]', not an object"),
    "a line that is no token": ("t.token.txt", "a.jpg#0\ta dog\nb.jpg a cat\n", "row 2: found 'b.jpg a cat'"),
    "another kind of file": ("t.xml", "<a/>", r"not a known kind of caption file\. Known: \.csv"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_a_file_say_what_was_found(write, fault):
    name, content, message = FAULTS[fault]
    with pytest.raises(ValueError, match=message):
        read_caption_file(write(name, content))


def test_other_encodings_are_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"image,caption\na.jpg,caf\xe9\n")
    with pytest.raises(ValueError, match="save it as UTF-8"):
        read_caption_file(path)
