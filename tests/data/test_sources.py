import hashlib
import io
import itertools
import json
import os
import tarfile
import warnings

import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from hf_gru_captioner.data import load_captions, stream_captions

LAYOUTS = {
    "captions": {"captions": [["a dog", " two dogs "], ["a cat"]]},
    "caption, a string": {"caption": ["a dog", "a cat"]},
    "caption, a list": {"caption": [["a dog", "two dogs"], ["a cat"]]},
    "text": {"text": ["a dog", "a cat"]},
    "numbered": {"caption_0": ["a dog", "a cat"], "caption_1": ["two dogs", None]},
    "sentences, strings": {"sentences": [["a dog", "two dogs"], ["a cat"]]},
    "sentences, dicts": {"sentences": [[{"raw": "a dog"}, {"raw": "two dogs"}], [{"raw": "a cat"}]]},
}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def save(make_dataset, tmp_path):
    """Saves photos with these caption columns as a folder of parquet files, each split the same."""

    def save(columns, splits=("train", "validation"), size=2):
        dataset = make_dataset(size).select_columns("image")
        for name, values in columns.items():
            dataset = dataset.add_column(name, values)
        (tmp_path / "set" / "data").mkdir(parents=True, exist_ok=True)
        for split in splits:
            dataset.to_parquet(tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet")
        return tmp_path / "set"

    return save


@pytest.fixture
def put(make_photo):
    """Puts photos into a folder, the first 40 pixels wide, the next 41 and so on."""

    def put(folder, *names):
        for seed, name in enumerate(names):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            make_photo(seed, width=40 + seed).save(path)
        return folder

    return put


def table(rows):
    """The content of rows, with each photo replaced by its width."""
    return [(row["image_id"], row["captions"], row["image"].width) for row in rows]


DOG_AND_CAT = [("0.png", ["a dog", "two dogs"], 40), ("1.png", ["a cat"], 41)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_known_layouts_become_rows_of_one_form(save, layout):
    dataset = load_captions(save(LAYOUTS[layout]), "train")
    assert dataset.column_names == ["image", "captions", "image_id", "image_digest"]
    two = ["a dog", "two dogs"] if "string" not in layout.replace("strings", "") and layout != "text" else ["a dog"]
    assert list(dataset["captions"]) == [two, ["a cat"]]
    assert list(dataset["image_id"]) == ["0", "1"]
    assert dataset[0]["image"].size == (40, 30)


@pytest.mark.parametrize("read", [load_captions, stream_captions])
def test_captions_may_have_weights(save, read):
    weights = [[0.5, 7.0, 2.0], None]
    source = save({"captions": [["a dog", "", "two dogs"], ["a cat"]], "caption_weights": weights})
    assert [row["caption_weights"] for row in read(source)] == [[0.5, 2.0], [1.0]]
    assert [row["captions"] for row in read(source)] == [["a dog", "two dogs"], ["a cat"]]


@pytest.mark.parametrize("read", [load_captions, stream_captions])
def test_rows_with_wrong_weights_are_named_and_left_out(save, read):
    source = save({"caption": ["a dog", "a cat"], "caption_weights": [[1.0], [-1.0]]})
    with pytest.warns(UserWarning, match=r"a caption weight must be above 0 and at most 1000, found -1.0"):
        assert [row["captions"] for row in read(source, max_skipped=0.5)] == [["a dog"]]


def test_weights_of_a_table_and_of_shards_are_read(put, tar, tmp_path):
    put(tmp_path, "a.png", "b.png")
    row = {"image": "a.png", "captions": ["a dog", "two dogs"], "caption_weights": [0.5, 1]}
    (tmp_path / "test.jsonl").write_text(json.dumps(row) + '\n{"image": "b.png", "captions": ["a cat"]}\n')
    json_of_shard = {"captions": row["captions"], "caption_weights": row["caption_weights"]}
    tar(tmp_path / "test.tar", {"a": {"jpg": 40, "json": json.dumps(json_of_shard).encode()}})
    for read in (load_captions, stream_captions):
        assert [row["caption_weights"] for row in read(tmp_path / "test.jsonl", "test")] == [[0.5, 1.0], [1.0]]
        assert [row["caption_weights"] for row in read(tmp_path / "test.tar", "test")] == [[0.5, 1.0]]


@pytest.mark.parametrize("read", [load_captions, stream_captions])
def test_images_may_have_labels(save, put, tar, tmp_path, read):
    labels = [["dog", "dog", "person"], None]
    source = save({"caption": ["two dogs", "a cat"], "labels": labels})
    assert [row["labels"] for row in read(source)] == labels
    put(tmp_path, "a.png", "b.png")
    rows = [{"image": "b.png", "caption": "a cat"}, {"image": "a.png", "caption": "two dogs", "labels": labels[0]}]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [row["labels"] for row in read(tmp_path / "test.jsonl", "test")] == labels[::-1]
    tar(tmp_path / "test.tar", {"a": {"jpg": 40, "json": json.dumps(rows[1]).encode()}})
    assert [row["labels"] for row in read(tmp_path / "test.tar", "test")] == labels[:1]


@pytest.mark.parametrize("labels", [[3, 7], ["dog", "cat"], [[3], [7]]])
def test_a_column_labels_that_is_no_list_of_text_means_something_else(save, labels):
    source = save({"caption": ["a dog", "a cat"], "labels": labels})
    assert "labels" not in load_captions(source).column_names


def test_file_names_become_image_ids(save):
    dataset = load_captions(save({"caption": ["a dog", "a cat"], "filename": ["x.jpg", "y.jpg"]}))
    assert list(dataset["image_id"]) == ["x.jpg", "y.jpg"]


@pytest.mark.parametrize(
    ("ids", "named"), [(["x", None], ["x", "1"]), ([None, 7], ["0", "7"]), ([None] * 2, ["0", "1"])]
)
def test_a_null_is_no_image_id(save, ids, named):
    source = save({"caption": ["a dog", "a cat"], "image_id": ids})
    assert list(load_captions(source)["image_id"]) == named
    for row, given in zip(stream_captions(source), ids, strict=True):
        assert row["image_id"] == str(given) or (given is None and len(row["image_id"]) == 16)  # of the digest


def test_a_null_in_a_shard_leaves_the_image_its_name(tar, tmp_path):
    content = json.dumps({"caption": "a dog", "image_id": None}).encode()
    tar(tmp_path / "train.tar", {"a": {"jpg": 40, "json": content}})
    assert load_captions(tmp_path / "train.tar", "all")["image_id"][:] == ["a"]


@pytest.fixture
def row_per_caption(make_dataset, tmp_path):
    """Saves two photos as Parquet, with a row for each of their captions; keywords are further columns."""

    def save(captions=("a dog", "a cat", "two dogs", "one cat"), names=("x", "y", "x", "y"), **columns):
        photos = make_dataset(2).select_columns("image").select([0, 1, 0, 1])
        columns = {"caption": list(captions), "image_id": list(names), **columns}
        for name, values in columns.items():
            photos = photos.add_column(name, values)
        photos.to_parquet(tmp_path / "rows.parquet")
        return tmp_path / "rows.parquet"

    return save


def test_rows_of_one_image_are_merged(row_per_caption):
    labels, weights = [None, ["cat"], ["dog"], ["sofa"]], [[0.5], [1.0], [2.0], [3.0]]
    dataset = load_captions(row_per_caption(labels=labels, caption_weights=weights), "all")
    assert table(dataset) == [("x", ["a dog", "two dogs"], 40), ("y", ["a cat", "one cat"], 40)]
    assert list(dataset["labels"]) == [["dog"], ["cat"]]
    assert list(dataset["caption_weights"]) == [[0.5, 2.0], [1.0, 3.0]]
    assert len(set(dataset["image_digest"])) == 2


def test_an_image_of_several_rows_is_in_one_split(row_per_caption):
    source = row_per_caption()
    train, validation = (load_captions(source, split)["image_id"][:] for split in ("train", "validation"))
    assert sorted(train + validation) == ["x", "y"]


def test_a_row_without_its_caption_does_not_take_the_image_with_it(row_per_caption):
    with pytest.warns(UserWarning, match="1 caption of .* empty, left out: x"):
        dataset = load_captions(row_per_caption(captions=[None, "a cat", "two dogs", "one cat"]), "all")
    assert list(dataset["captions"]) == [["two dogs"], ["a cat", "one cat"]]
    with pytest.warns(UserWarning, match="1 of 2 images of .* have no caption and are skipped: x"):
        dataset = load_captions(row_per_caption(captions=[None, "a", "", "b"]), "all", max_skipped=0.5)
    assert list(dataset["captions"]) == [["a", "b"]]


def test_other_images_of_the_same_name_and_copies_of_another_are_not_merged(row_per_caption):
    assert len(load_captions(row_per_caption(names=["x"] * 4), "all")) == 2
    assert len(load_captions(row_per_caption(names=["a", "b", "c", "d"]), "all")) == 4


def test_a_stream_does_not_merge(row_per_caption):
    streamed = stream_captions(row_per_caption(), "train")
    assert all(len(row["captions"]) == 1 for row in streamed)


def test_images_with_a_metadata_file_are_read(put, tmp_path):
    for split in ("train", "validation"):
        folder = put(tmp_path / "photos" / split, "0.png", "1.png")
        (folder / "metadata.csv").write_text("file_name,caption\n0.png,a dog\n1.png,a cat\n")
    expected = [("train/0.png", ["a dog"], 40), ("train/1.png", ["a cat"], 41)]
    assert table(load_captions(tmp_path / "photos")) == table(stream_captions(tmp_path / "photos")) == expected


def test_a_saved_data_set_is_read(make_dataset, tmp_path):
    dataset = make_dataset(3).select_columns(["image", "captions"])
    DatasetDict(train=dataset.select([0, 1]), val=dataset.select([2])).save_to_disk(tmp_path / "dict")
    assert list(load_captions(tmp_path / "dict")["captions"]) == list(dataset["captions"])[:2]
    assert list(load_captions(tmp_path / "dict", "validation")["captions"]) == list(dataset["captions"])[2:]
    assert [row["captions"] for row in stream_captions(tmp_path / "dict")] == list(dataset["captions"])[:2]
    dataset.save_to_disk(tmp_path / "single")
    halves = [load_captions(tmp_path / "single", split)["captions"] for split in ("train", "validation")]
    assert sorted(map(len, halves)) == [1, 2]
    assert sorted([*halves[0], *halves[1]]) == sorted(dataset["captions"])


def test_a_table_beside_its_photos_is_read(put, tmp_path):
    put(tmp_path / "images", "0.png", "1.png", "2.png")
    path = tmp_path / "photos.csv"
    path.write_text(
        "image,caption,split\n0.png,a dog,train\n0.png,two dogs,train\n1.png,a cat,train\n2.png,a cow,val\n"
    )
    assert table(load_captions(path)) == table(stream_captions(path)) == DOG_AND_CAT
    assert table(load_captions(path, "validation")) == [("2.png", ["a cow"], 42)]


def test_photos_elsewhere_are_named_by_images(put, tmp_path, monkeypatch):
    put(tmp_path / "elsewhere", "0.png", "1.png")
    path = tmp_path / "test.jsonl"
    path.write_text(
        '{"image": "0.png", "captions": ["a dog", "two dogs"]}\n{"image": "1.png", "captions": ["a cat"]}\n'
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    for read in (load_captions, stream_captions):
        assert table(read("~/test.jsonl", "test", images="~/elsewhere")) == DOG_AND_CAT
        with pytest.raises(FileNotFoundError, match=r"'0\.png' \(row 1\)\. Searched: .*images="):
            read(path, "test")
        with pytest.raises(FileNotFoundError, match=r"images=.*nowhere is not a folder"):
            read(path, "test", images=tmp_path / "nowhere")


@pytest.mark.parametrize("as_a_file", [False, True])
def test_coco_is_read(put, tmp_path, as_a_file):
    annotations = tmp_path / "annotations"
    annotations.mkdir()
    for split, animal in (("train", "dog"), ("val", "cat")):
        put(tmp_path / f"{split}2017", "1.png", *(["2.png"] if split == "val" else []))
        content = {
            "images": [{"id": 10 if split == "train" else 20, "file_name": "1.png" if split == "train" else "2.png"}],
            "annotations": [{"image_id": 10 if split == "train" else 20, "caption": f"a {animal}"}],
        }
        (annotations / f"captions_{split}2017.json").write_text(json.dumps(content))
    if as_a_file:
        source = annotations / "captions_val2017.json"
        with pytest.raises(ValueError, match="no split 'train', it has validation"):
            load_captions(source)
    else:
        source = tmp_path
        assert table(load_captions(source, "train")) == [("10", ["a dog"], 40)]
    assert table(load_captions(source, "validation")) == [("20", ["a cat"], 41)]
    assert table(stream_captions(source, "val")) == [("20", ["a cat"], 41)]


@pytest.mark.parametrize("as_a_file", [False, True])
def test_karpathys_json_is_read(put, tmp_path, as_a_file):
    put(tmp_path / "val2014", "0.png", "1.png", "2.png")
    images = [
        {"filepath": "val2014", "filename": name, "split": split, "sentences": [{"raw": text} for text in texts]}
        for name, split, texts in (
            ("0.png", "train", ["a dog", "two dogs"]),
            ("1.png", "restval", ["a cat"]),
            ("2.png", "val", ["a cow"]),
        )
    ]
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": images, "dataset": "coco"}))
    source = path if as_a_file else tmp_path
    assert table(load_captions(source)) == table(stream_captions(source)) == DOG_AND_CAT
    assert table(load_captions(source, "validation")) == [("2.png", ["a cow"], 42)]


@pytest.mark.parametrize("as_a_file", [False, True])
def test_flickr8k_is_read(put, tmp_path, as_a_file):
    put(tmp_path / "Flicker8k_Dataset", "0.png", "1.png", "2.png")
    path = tmp_path / "Flickr8k.token.txt"
    path.write_text("0.png#0\ta dog\n0.png#1\ttwo dogs\n1.png#0\ta cat\n2.png#0\ta cow\n")
    (tmp_path / "Flickr_8k.trainImages.txt").write_text("0.png\n1.png\n")
    (tmp_path / "Flickr_8k.devImages.txt").write_text("2.png\n")
    source = path if as_a_file else tmp_path
    assert table(load_captions(source)) == table(stream_captions(source)) == DOG_AND_CAT
    assert table(load_captions(source, "validation")) == [("2.png", ["a cow"], 42)]


@pytest.fixture
def tar(make_photo):
    """Makes a shard: for each key the parts, bytes as they are; a photo as many pixels wide as the number says."""

    def tar(path, samples):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as file:
            for key, parts in samples.items():
                for ending, content in parts.items():
                    if isinstance(content, int):
                        encoded = io.BytesIO()
                        make_photo(content, width=content).save(encoded, {"jpg": "JPEG"}.get(ending, ending))
                        content = encoded.getvalue()
                    entry = tarfile.TarInfo(f"{key}.{ending}")
                    entry.size = len(content)
                    file.addfile(entry, io.BytesIO(content))
        return path

    return tar


@pytest.mark.parametrize("names", ["{}-000.tar", "{}/000.tar"])
def test_webdataset_shards_are_read_and_their_names_tell_the_split(tar, tmp_path, names):
    tar(tmp_path / names.format("train"), {"0": {"jpg": 40, "txt": b"a dog"}, "1": {"jpg": 41, "txt": b"a cat"}})
    tar(tmp_path / names.format("val"), {"2": {"jpg": 42, "txt": b"a cow"}})
    expected = [("0", ["a dog"], 40), ("1", ["a cat"], 41)]
    assert table(load_captions(tmp_path)) == table(stream_captions(tmp_path)) == expected
    assert table(load_captions(tmp_path, "validation")) == [("2", ["a cow"], 42)]


@pytest.mark.parametrize("ending", ["png", "webp"])
@pytest.mark.parametrize(
    "captions", [{"captions": ["a dog", "two dogs"]}, {"caption": "a dog", "width": 40}, {"caption_0": "a dog"}]
)
def test_captions_may_be_in_the_json_of_a_shard(tar, tmp_path, ending, captions):
    pattern = str(tmp_path / "dev-*.tar")
    for shard in range(2):
        sample = {ending: 40 + shard, "json": json.dumps(captions).encode()}
        tar(tmp_path / f"dev-{shard}.tar", {f"key{shard}": sample})
    texts = captions.get("captions", ["a dog"])
    expected = [("key0", texts, 40), ("key1", texts, 41)]
    assert table(load_captions(pattern, "validation")) == table(stream_captions(pattern, "validation")) == expected


def test_shards_of_no_split_are_divided(tar, tmp_path):
    path = tar(tmp_path / "0.tar", {f"k{i}": {"png": 40 + i, "txt": b"a dog"} for i in range(60)})
    halves = {split: table(load_captions(path, split)) for split in ("train", "validation")}
    assert sorted(halves["train"] + halves["validation"]) == sorted((f"k{i}", ["a dog"], 40 + i) for i in range(60))
    streamed = {split: table(stream_captions(path, split)) for split in halves}  # 5 %: its length is unknown
    assert sorted(streamed["train"] + streamed["validation"]) == sorted(halves["train"] + halves["validation"])
    assert {row[0] for row in streamed["validation"]} <= {row[0] for row in halves["validation"]}
    assert len(halves["validation"]) == 9  # 15 %


@pytest.mark.parametrize("size", [2, 300])
def test_a_table_without_splits_is_divided_the_same_way_every_time(put, tmp_path, size):
    put(tmp_path, "0.png")
    path = tmp_path / "photos.csv"
    for index in range(size):
        (tmp_path / f"{index}.png").write_bytes((tmp_path / "0.png").read_bytes())
    lines = [f"{index}.png,a dog" for index in range(size)]
    path.write_text("\n".join(["image,caption", *lines]))
    train, validation = (list(load_captions(path, split)["image_id"]) for split in ("train", "validation"))
    assert sorted(train + validation) == sorted(f"{index}.png" for index in range(size))
    assert len(validation) == (1 if size == 2 else 45)
    path.write_text("\n".join(["image,caption", *reversed(lines)]))
    assert list(load_captions(path, "validation")["image_id"]) == validation[::-1]
    assert [row["image_id"] for row in stream_captions(path, "validation")] == validation[::-1]


def test_a_set_with_nothing_but_train_is_divided_by_names_or_images(save):
    names = {"filename": [f"{i}.jpg" for i in range(60)], "caption": ["a dog"] * 60}
    for columns in (names, {"caption": names["caption"]}):
        source = save(columns, ["train"], size=60)
        halves = [load_captions(source, split)["image_digest"] for split in ("train", "validation")]
        assert len(set(halves[0]) | set(halves[1])) == len(halves[0]) + len(halves[1]) == 60
        assert len(halves[1]) == 9
        photos = {
            split: [row["image"].tobytes() for row in stream_captions(source, split)]
            for split in ("train", "validation")
        }
        assert set(photos["validation"]) <= {image.tobytes() for image in load_captions(source, "validation")["image"]}
        assert len(photos["train"]) + len(photos["validation"]) == 60
    save(columns, ["test"], size=60)
    assert len(load_captions(source)) == 60  # train is whole where there is any other split
    with pytest.raises(ValueError, match="no split 'validation', it has train, test"):
        load_captions(source, "validation")


def test_the_digest_is_of_the_encoded_image(put, tmp_path):
    put(tmp_path, "0.png", "1.png")
    path = tmp_path / "test.csv"
    path.write_text("image,caption\n0.png,a dog\n1.png,a cat\n")
    expected = [hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("0.png", "1.png")]
    assert list(load_captions(path, "test")["image_digest"]) == expected


@pytest.mark.parametrize("kind", ["table", "imagefolder"])
def test_another_photo_of_the_same_name_has_another_digest(put, make_photo, tmp_path, kind):
    folder = put(tmp_path / "test", "0.png")
    name = "metadata.csv" if kind == "imagefolder" else "test.csv"
    (folder / name).write_text("file_name,caption\n0.png,a dog\n")
    source, split = (tmp_path if kind == "imagefolder" else folder / name), "test"
    before = load_captions(source, split)
    make_photo(7, width=44).save(folder / "0.png")
    after = load_captions(source, split)
    assert after["image_digest"][0] == hashlib.sha256((folder / "0.png").read_bytes()).hexdigest()
    assert after["image_digest"][0] != before["image_digest"][0]
    assert after[0]["image"].width == 44


def test_unchanged_photos_are_checked_once(put, tmp_path, monkeypatch):
    put(tmp_path, "0.png")
    path = tmp_path / "test.csv"
    path.write_text("image,caption\n0.png,a dog\n")
    before = load_captions(path, "test")
    stat = os.stat(tmp_path / "0.png")
    (tmp_path / "0.png").write_bytes(bytes(stat.st_size))  # what would be noticed if it were looked at
    os.utime(tmp_path / "0.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert load_captions(path, "test")["image_digest"][:] == before["image_digest"][:]


@pytest.fixture
def spoilt(put, tmp_path):
    """A table of 200 photos, some of them unusable: a truncated JPEG, a file that is no image, a missing file."""
    put(tmp_path, "good.jpg")
    whole = (tmp_path / "good.jpg").read_bytes()
    (tmp_path / "torn.jpg").write_bytes(whole[:-60])
    (tmp_path / "text.jpg").write_text("hello")
    names = ["torn.jpg", "text.jpg", "gone.jpg"]
    for index in range(196):
        names.append(f"{index}.jpg")
        (tmp_path / names[-1]).write_bytes(whole)
    path = tmp_path / "test.csv"
    path.write_text("image,caption\n" + "".join(f"{name},a dog\n" for name in names) + "good.jpg,\n")
    return path


@pytest.mark.parametrize("read", [load_captions, stream_captions])
def test_rows_that_cannot_be_used_are_named_and_left_out(spoilt, read):
    with pytest.warns(UserWarning, match="are skipped") as caught:
        rows = list(read(spoilt, "test", max_skipped=0.1))
    assert [row["image_id"] for row in rows] == [f"{index}.jpg" for index in range(196)]
    (warning,) = [each for each in caught if "are skipped" in str(each.message)]  # others are of libraries
    message = str(warning.message)
    assert f"1 of 200 images of {spoilt} have no caption and 3 of 200 images of {spoilt} can't be read" in message
    assert "torn.jpg (row 2: OSError: image file is truncated" in message
    assert "text.jpg (row 3: not an image that Pillow knows)" in message
    assert f"gone.jpg (row 4: {spoilt.parent / 'gone.jpg'}: No such file or directory)" in message
    assert "good.jpg (row 201: no caption)" in message
    assert warning.filename == __file__


@pytest.mark.parametrize("read", [load_captions, stream_captions])
def test_too_many_rows_that_cannot_be_used_are_an_error(spoilt, read):
    with pytest.raises(ValueError, match=r"torn\.jpg.*exceeds max_skipped=0\.01: .* raise max_skipped to 0\.0\d"):
        list(read(spoilt, "test"))
    with pytest.raises(ValueError, match="max_skipped must be from 0 to 1, found 5"):
        read(spoilt, "test", max_skipped=5)


def test_a_stream_is_judged_from_a_hundred_rows_on(spoilt):
    rows = []
    with pytest.raises(ValueError, match="3 of 100 images"):
        rows.extend(stream_captions(spoilt, "test"))
    assert len(rows) == 96  # three of a hundred are spoilt, and the hundredth is judged before it is given out


def test_only_five_rows_are_named(save):
    columns = {"caption": [""] * 8 + ["a dog"] * 2}
    with pytest.warns(
        UserWarning, match=r"8 of 10 images of .* have no caption and are skipped: 0 .*, 4 .* and 3 more"
    ):
        load_captions(save(columns, size=10), max_skipped=0.8)


def test_photos_without_a_caption_are_left_out_with_a_warning(save):
    with pytest.warns(UserWarning, match="1 of 2 images of .* have no caption and are skipped"):
        dataset = load_captions(save({"captions": [["", " "], ["a cat"]]}), max_skipped=0.5)
    assert list(dataset["captions"]) == [["a cat"]]
    assert list(dataset["image_id"]) == ["1"]
    assert dataset[0]["image"].size == (40, 30)


def test_photos_lie_as_their_camera_says_and_modes_stay(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("L", (40, 30)).save(tmp_path / "0.jpg", exif=exif)
    (tmp_path / "test.csv").write_text("image,caption\n0.jpg,a dog\n")
    for read in (load_captions, stream_captions):
        (row,) = read(tmp_path / "test.csv", "test")
        assert (row["image"].size, row["image"].mode) == ((30, 40), "L")


def test_images_may_be_paths_or_bytes_with_a_name_that_is_also_a_file_here(put, tmp_path, monkeypatch):
    monkeypatch.chdir(put(tmp_path / "paths" / "photos", "0.png", "1.png"))
    paths = [str(tmp_path / "paths" / "photos" / name) for name in ("0.png", "1.png")]
    embedded = [{"bytes": (tmp_path / "paths" / "photos" / "1.png").read_bytes(), "path": "0.png"}] * 2
    for name, images, widths in (("paths", paths, [40, 41]), ("embedded", embedded, [41, 41])):
        (tmp_path / name).mkdir(exist_ok=True)
        Dataset.from_dict({"image": images, "caption": ["a dog", "a cat"]}).to_parquet(tmp_path / name / "test.parquet")
        for read in (load_captions, stream_captions):
            assert [row["image"].width for row in read(tmp_path / name, "test")] == widths


STREAMS = ["parquet", "parquet in shards", "saved", "table", "shards"]


@pytest.fixture
def source_of(make_dataset, put, tar, tmp_path, monkeypatch):
    """Makes twelve named photos as a source of this kind."""
    monkeypatch.setattr("hf_gru_captioner.data.sources.IMAGES_PER_SHARD", 3)
    names = [f"{index:02}.png" for index in range(12)]

    def source_of(kind):
        if kind in ("table", "saved"):
            put(tmp_path, *names)
            (tmp_path / "test.csv").write_text("image,caption\n" + "".join(f"{name},photo {name}\n" for name in names))
            if kind == "table":
                return tmp_path / "test.csv"
        if kind == "shards":
            for shard in range(4):
                part = names[3 * shard : 3 * shard + 3]
                samples = {name[:2]: {"png": 40 + int(name[:2]), "txt": b"photo"} for name in part}
                tar(tmp_path / "shards" / f"test-{shard}.tar", samples)
            return tmp_path / "shards"
        dataset = make_dataset(12).select_columns(["image", "captions"]).add_column("filename", names)
        if kind == "saved":
            DatasetDict(test=dataset).save_to_disk(tmp_path / "saved")
            return tmp_path / "saved"
        number = 4 if kind == "parquet in shards" else 1
        (tmp_path / "set" / "data").mkdir(parents=True)
        for shard in range(number):
            part = dataset.shard(number, shard)
            part.to_parquet(tmp_path / "set" / "data" / f"test-{shard:05}-of-{number:05}.parquet")
        return tmp_path / "set"

    return source_of


def plain(rows):
    return [(row["image_id"], row["captions"], row["image"].size, row["image"].tobytes()) for row in rows]


@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_gives_the_rows_of_the_whole(source_of, kind):
    source = source_of(kind)
    assert list(next(iter(stream_captions(source, "test")))) == ["image", "captions", "image_id"]
    assert len(plain(stream_captions(source, "test"))) == 12
    assert plain(stream_captions(source, "test")) == plain(load_captions(source, "test"))


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("world_size", [2, 5])
def test_ranks_see_rows_of_their_own_that_together_are_all(source_of, kind, seed, world_size):
    source = source_of(kind)
    ids = [
        [row["image_id"] for row in stream_captions(source, "test", rank=rank, world_size=world_size, seed=seed)]
        for rank in range(world_size)
    ]
    assert all(ids)
    assert sorted(itertools.chain(*ids)) == sorted(load_captions(source, "test")["image_id"])


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("epoch", [0, 2])
def test_a_stream_goes_on_where_it_was_left(source_of, kind, seed, epoch):
    source, options = source_of(kind), {"rank": 1, "world_size": 2, "seed": seed}
    stream = stream_captions(source, "test", **options)
    stream.set_epoch(epoch)
    whole = plain(stream)
    assert len(whole) == 6
    for taken in (1, 3, 4):
        rows = iter(stream)
        for _ in range(taken):
            next(rows)
        state = json.loads(json.dumps(stream.state_dict()))
        other = stream_captions(source, "test", **options)
        other.set_epoch(epoch)
        other.load_state_dict(state)
        assert plain(other) == whole[taken:]


@pytest.mark.parametrize("kind", ["parquet in shards", "saved", "table", "shards"])
def test_a_seed_and_each_epoch_give_the_shards_another_order(source_of, kind):
    source = source_of(kind)

    def ids(seed, epoch=0):
        stream = stream_captions(source, "test", seed=seed)
        stream.set_epoch(epoch)
        return [row["image_id"] for row in stream]

    in_order = load_captions(source, "test")["image_id"][:]
    assert ids(None) == in_order
    of_seeds, of_epochs = {tuple(ids(seed)) for seed in range(8)}, {tuple(ids(1, epoch)) for epoch in range(8)}
    assert min(len(of_seeds), len(of_epochs)) > 4  # of the 24 orders of four shards
    assert ids(2, 1) == ids(2, 1)
    for order in of_seeds | of_epochs:
        blocks = [list(order[start : start + 3]) for start in range(0, 12, 3)]
        assert sorted(order) == in_order
        assert all(block in [in_order[start : start + 3] for start in range(0, 12, 3)] for block in blocks)


def test_what_is_left_of_a_stream_is_still_checked_after_take(spoilt):
    assert [row["image_id"] for row in stream_captions(spoilt, "test").take(2)] == ["0.jpg", "1.jpg"]


def test_a_stream_that_is_read_again_counts_anew(spoilt):
    stream = stream_captions(spoilt, "test", max_skipped=0.1)
    for _ in range(2):
        with pytest.warns(UserWarning, match="1 of 200 images"):
            list(stream)


def test_sound_sources_give_no_warning(save):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        source = save({"caption": ["a dog", "a cat"]})
        load_captions(source)
        list(stream_captions(source))


@pytest.mark.parametrize("read", [load_captions, stream_captions])
def test_what_is_missing_is_named(save, put, read, tmp_path):
    with pytest.raises(ValueError, match=r"no split 'test', it has train"):
        read(save({"caption": ["a dog", "a cat"]}), "test")
    with pytest.raises(ValueError, match=r"is not a caption file but contains its images: omit images="):
        read(tmp_path / "set", images=tmp_path)
    with pytest.raises(ValueError, match=r"Columns found: image, words\. Known layouts: captions"):
        read(save({"words": ["a dog", "a cat"]}))
    for nowhere in (tmp_path / "nowhere", "nowhere.csv"):
        with pytest.raises(FileNotFoundError, match=r"nowhere.* does not exist: name a caption file, or the folder"):
            read(nowhere)
    (tmp_path / "texts").mkdir()
    with pytest.raises(FileNotFoundError, match=r"texts is not a captioned dataset: .* no caption file \(\.csv"):
        read(tmp_path / "texts")
    Dataset.from_dict({"caption": ["a dog"]}).to_parquet(tmp_path / "texts" / "train.parquet")
    with pytest.raises(ValueError, match=r"no column 'image': name it with image_column=NAME. Columns found: caption"):
        read(tmp_path / "texts")
    with pytest.raises(FileNotFoundError, match=r"\*\.tar matches no file"):
        read(str(tmp_path / "*.tar"))
    with pytest.raises(ValueError, match=r"matches .*train\.parquet: a pattern may match webdataset shards"):
        read(str(tmp_path / "texts" / "*"))
    put(tmp_path / "one", "0.png")
    (tmp_path / "one" / "photos.csv").write_text("image,caption\n0.png,a dog\n")
    assert len(list(read(tmp_path / "one" / "photos.csv", "validation"))) == 1
    with pytest.raises(ValueError, match="no images in its split 'train'"):
        read(tmp_path / "one" / "photos.csv", "train")


@pytest.mark.parametrize("column", ["paths", "image structs"])
def test_a_repaired_or_replaced_image_that_a_parquet_file_names_is_noticed(put, tmp_path, column):
    names = [f"images/{number}.png" for number in range(6)]
    put(tmp_path / "set", *names)
    paths = names if column == "paths" else [{"path": str(tmp_path / "set" / name), "bytes": None} for name in names]
    features = Features({"image": Value("string") if column == "paths" else ImageFeature(), "caption": Value("string")})
    rows = Dataset.from_dict({"image": paths, "caption": ["a dog"] * 6}, features=features)
    table = rows.with_format("arrow")[:]
    pyarrow.parquet.write_table(table, tmp_path / "set" / "train.parquet")  # to_parquet would embed the images

    def digests():
        return list(load_captions(tmp_path / "set", "all")["image_digest"])

    def stored():
        return [hashlib.sha256((tmp_path / "set" / name).read_bytes()).hexdigest() for name in names]

    content = (tmp_path / "set" / names[0]).read_bytes()
    (tmp_path / "set" / names[0]).write_bytes(content[:100])
    with pytest.raises(ValueError, match="can't be read"):
        digests()
    (tmp_path / "set" / names[0]).write_bytes(content)
    assert digests() == stored()
    (tmp_path / "set" / names[1]).write_bytes((tmp_path / "set" / names[2]).read_bytes())
    assert digests() == stored()
    assert len(set(stored())) == 5
    (tmp_path / "set" / names[1]).unlink()
    with pytest.raises(ValueError, match="can't be read"):
        digests()
