import pytest
from datasets import Dataset

from hf_gru_captioner.data import load_captions

LAYOUTS = {
    "captions": {"captions": [["a dog", " two dogs "], ["a cat"]]},
    "caption, a string": {"caption": ["a dog", "a cat"]},
    "caption, a list": {"caption": [["a dog", "two dogs"], ["a cat"]]},
    "text": {"text": ["a dog", "a cat"]},
    "numbered": {"caption_0": ["a dog", "a cat"], "caption_1": ["two dogs", None]},
    "sentences, strings": {"sentences": [["a dog", "two dogs"], ["a cat"]]},
    "sentences, dicts": {"sentences": [[{"raw": "a dog"}, {"raw": "two dogs"}], [{"raw": "a cat"}]]},
}


@pytest.fixture
def save(make_dataset, tmp_path):
    """Saves photos with these caption columns as a folder of parquet files."""

    def save(columns, split="train"):
        dataset = make_dataset(2).remove_columns("captions")
        for name, values in columns.items():
            dataset = dataset.add_column(name, values)
        (tmp_path / "set" / "data").mkdir(parents=True, exist_ok=True)
        dataset.to_parquet(tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet")
        return tmp_path / "set"

    return save


@pytest.mark.parametrize("layout", LAYOUTS)
def test_known_layouts_become_rows_of_one_form(save, layout):
    dataset = load_captions(save(LAYOUTS[layout]), "train")
    assert dataset.column_names == ["image", "captions", "image_id"]
    two = ["a dog", "two dogs"] if "string" not in layout.replace("strings", "") and layout != "text" else ["a dog"]
    assert list(dataset["captions"]) == [two, ["a cat"]]
    assert list(dataset["image_id"]) == ["0", "1"]
    assert dataset[0]["image"].size == (40, 30)


def test_file_names_become_image_ids(save):
    dataset = load_captions(save({"caption": ["a dog", "a cat"], "filename": ["x.jpg", "y.jpg"]}))
    assert list(dataset["image_id"]) == ["x.jpg", "y.jpg"]


def test_photos_without_a_caption_are_left_out_with_a_warning(save):
    with pytest.warns(UserWarning, match="1 of 2 photos of .* have no caption"):
        dataset = load_captions(save({"captions": [["", " "], ["a cat"]]}))
    assert list(dataset["captions"]) == [["a cat"]]
    assert list(dataset["image_id"]) == ["1"]


def test_images_with_a_metadata_file_are_read(make_photo, tmp_path):
    folder = tmp_path / "photos" / "train"
    folder.mkdir(parents=True)
    for seed in range(2):
        make_photo(seed).save(folder / f"{seed}.png")
    (folder / "metadata.csv").write_text("file_name,caption\n0.png,a dog\n1.png,a cat\n")
    assert list(load_captions(tmp_path / "photos")["captions"]) == [["a dog"], ["a cat"]]


def test_what_is_missing_is_named(save, make_photo, tmp_path):
    with pytest.raises(ValueError, match=r"no split 'test', it has train"):
        load_captions(save({"caption": ["a dog", "a cat"]}), "test")
    with pytest.raises(ValueError, match=r"Columns found: image, words\. Known layouts: captions"):
        load_captions(save({"words": ["a dog", "a cat"]}))
    with pytest.raises(FileNotFoundError, match="not a folder of a captioned data set"):
        load_captions(tmp_path / "nowhere")
    Dataset.from_dict({"caption": ["a dog"]}).to_parquet(tmp_path / "texts" / "train.parquet")
    with pytest.raises(ValueError, match=r"no column 'image'. Columns found: caption"):
        load_captions(tmp_path / "texts")
