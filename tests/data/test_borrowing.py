import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, load_dataset
from datasets import Image as ImageFeature

from hf_gru_captioner.data import load_captions
from hf_gru_captioner.data.borrowing import (
    BorrowingOptions,
    CaptionPool,
    Donor,
    borrow_captions,
    choose,
    load_donors,
    typicality,
)
from hf_gru_captioner.errors import UsageError
from hf_gru_captioner.label_names import LabelNames

ANY_LENGTH = {"min_words": 1, "max_words": 20}
DONORS = [
    {"labels": ["horse"], "captions": ["A horse stands in a field", "A brown horse eats some grass"]},
    {"labels": ["horse", "dog"], "captions": ["A horse and a dog in a field", "A horse near the old barn"]},
    {"labels": ["dog"], "captions": ["A dog stands in a field", "A dog catches a red frisbee"]},
    {"labels": ["dog", "dog"], "captions": ["Two dogs run on the beach", "The animals run on the beach"]},
    {"labels": ["horse", "horse"], "captions": ["Two horses stand in a field", "A herd of horses runs along"]},
    {"labels": ["bicycle"], "captions": ["A bicycle leans against a red wall"]},
]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def save_images(make_photo, tmp_path):
    """Saves images with these labels as a parquet file, 40 pixels wide, 41 and so on."""

    def save(*labels, name="images.parquet"):
        images = [make_photo(seed, width=40 + seed) for seed in range(len(labels))]
        rows = Dataset.from_dict({"image": images, "labels": list(labels)}).cast_column("image", ImageFeature())
        rows.to_parquet(tmp_path / name)
        return tmp_path / name

    return save


@pytest.fixture
def captions(tmp_path):
    """A JSON lines file of captions with labels, without images."""
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in DONORS))
    return path


def pool_of(*donors, labels=(), synonyms=None, **options):
    donors = [Donor(captions, own) for own, captions in donors]
    names = LabelNames({label for donor in donors for label in donor.labels} | set(labels), synonyms)
    return CaptionPool(donors, names, BorrowingOptions(**{**ANY_LENGTH, **options}))


def candidates_of(pool, *labels, seed=0):
    return [found for found, _ in pool.candidates(labels, np.random.default_rng(seed))]


def test_an_image_whose_image_id_is_null_is_named_by_its_number(save_images, captions, tmp_path):
    path = save_images(["horse"], ["dog"])
    Dataset.from_parquet(str(path)).add_column("image_id", ["x", None]).to_parquet(path)
    borrow_captions(path, [captions], tmp_path / "borrowed", options=BorrowingOptions(min_words=1))
    assert load_dataset(str(tmp_path / "borrowed"), split="train")["image_id"][:] == ["x", "1"]


def test_images_get_captions_of_their_labels_alone_and_in_their_number(save_images, captions, tmp_path):
    images = save_images(["horse"], ["dog", "dog"], ["horse", "dog"])
    options = BorrowingOptions(min_words=4, per_image=2)
    report = borrow_captions(images, [captions], tmp_path / "borrowed", options=options)
    rows = load_captions(tmp_path / "borrowed")
    one_horse = {"A horse stands in a field", "A brown horse eats some grass", "A horse near the old barn"}
    of_both = one_horse | {row for donor in DONORS[:5] for row in donor["captions"]}
    table = load_dataset(str(tmp_path / "borrowed"), split="train")
    assert [image.width for image in table["image"]] == [40, 41, 42]
    horse, dogs, both = table["captions"]
    assert set(horse) <= one_horse
    assert len(horse) == 2
    assert dogs == ["Two dogs run on the beach"]  # "The animals" names no label
    assert set(both) <= of_both
    assert table["labels"][:] == [["horse"], ["dog", "dog"], ["horse", "dog"]]
    assert (report.num_images, report.num_captioned, report.num_captions) == (3, 3, 5)
    assert 1 <= len(rows) <= 2  # of three: 5 %, at least one, are the validation split


def test_the_same_labels_come_first_then_the_most_similar_ones():
    pool = pool_of(
        (["dog", "horse", "cat"], ["a dog of three labels"]),
        (["dog", "horse"], ["a dog of two labels"]),
        (["dog"], ["a dog of one label"]),
        (["cat"], ["a cat of one label"]),
    )
    own = ["dog", "horse"]
    assert candidates_of(pool, own) == [["a dog of two labels", "a dog of three labels", "a dog of one label"]]
    pool.options = BorrowingOptions(**ANY_LENGTH, candidates=1, per_image=1)
    assert candidates_of(pool, own) == [["a dog of two labels"]]


def test_among_the_same_labels_their_numbers_and_the_first_one_decide():
    pool = pool_of(
        (["horse", "dog"], ["the dog of a large horse"]),
        (["dog", "horse", "horse", "horse", "horse"], ["the dog of four horses"]),
        (["dog", "horse"], ["the dog first"]),
    )
    for seed in range(5):
        (found,) = candidates_of(pool, ["dog", "horse"], seed=seed)
        assert found[0] == "the dog first"
        (found,) = candidates_of(pool, ["dog", "horse", "horse", "horse"], seed=seed)
        assert found[0] == "the dog of four horses"


@pytest.mark.parametrize(
    ("number", "fitting"),
    [
        (1, {"a dog alone", "the dog and the dog"}),
        (2, {"two dogs here", "dogs in general", "the dog and the dog"}),
        (4, {"a group of dogs", "dogs in general"}),
    ],
)
def test_captions_of_another_number_of_the_only_label_are_dropped(number, fitting):
    texts = ["a dog alone", "two dogs here", "a group of dogs", "dogs in general", "the dog and the dog"]
    (found,) = candidates_of(pool_of((["dog"], texts)), ["dog"] * number)
    assert set(found) == fitting


def test_numbers_are_not_asked_for_where_there_are_several_labels():
    pool = pool_of((["dog", "cat"], ["two dogs and a cat", "a dog and a cat"]))
    assert len(candidates_of(pool, ["dog", "cat"])[0]) == 2


@pytest.mark.parametrize("labels", [["dog"], ["dog", "horse"]])
def test_captions_that_name_an_absent_label_are_dropped_even_if_only_synonyms_know_it(labels):
    pool = pool_of((labels, ["a dog and a kitten", "a dog in a tree"]), synonyms={"cat": ["kitten"]})
    assert candidates_of(pool, labels) == [["a dog in a tree"]]


def test_labels_that_only_the_other_image_has_make_it_less_similar():
    pool = pool_of((["dog", "horse", "cat", "bus", "bench"], ["a dog of many"]), (["dog"], ["a dog of one"]))
    assert candidates_of(pool, ["dog", "horse"]) == [["a dog of one", "a dog of many"]]  # 1/2 and 2/5


def test_the_search_goes_on_behind_the_first_window(monkeypatch):
    monkeypatch.setattr("hf_gru_captioner.data.borrowing.WINDOW", 2)
    donors = [(["dog"], [f"a dog with a cat {number}"]) for number in range(9)]  # drop out, being as similar as can be
    pool = pool_of(*donors, (["dog", "horse"], ["a dog at last"]), (["horse"], ["a horse at all"]), labels=["cat"])
    assert candidates_of(pool, ["dog"]) == [["a dog at last"]]


def test_length_and_repeated_captions():
    texts = ["A dog.", "A dog runs far", "a dog runs FAR!", "a dog runs far and wide"]
    pool = pool_of((["dog"], texts), (["dog"], texts), min_words=3, max_words=4)
    assert [caption.lower().rstrip("!") for caption in candidates_of(pool, ["dog"])[0]] == ["a dog runs far"]


def test_labels_are_compared_without_case_and_underscores():
    assert candidates_of(pool_of((["Hot_Dog"], ["a hot dog"]), labels=["hot dog"]), ["hot dog"]) == [["a hot dog"]]


def test_images_without_known_labels_have_no_candidates():
    assert candidates_of(pool_of((["dog"], ["a dog"]), labels=["cat"]), [], ["cat"]) == [[], []]


def test_typicality_is_the_mean_number_of_captions_with_the_same_bigrams():
    # <s> a, a dog: 3 each; dog runs: 2; runs </s>: 2; dog sat, sat </s>: 1 each
    assert typicality(["a dog runs", "a dog runs", "a dog sat"]) == [2.5, 2.5, 2.0]


def test_without_a_captioner_captions_are_drawn_from_the_sixth_that_is_most_typical():
    odd = [f"{letter}1 {letter}2 {letter}3" for letter in "abcdefghij"]
    typical = [f"a dog runs {word}" for word in ("far", "fast")]
    drawn = [choose([*odd, *typical], None, 1, np.random.default_rng(seed))[0] for seed in range(30)]
    assert set(drawn) == set(typical)  # both, at one time or another


def test_with_a_captioner_the_highest_scores_are_chosen_and_ties_go_to_the_typical():
    random = np.random.default_rng(0)
    assert choose(["a", "b", "c"], [-2.0, -1.0, -3.0], 2, random) == ["b", "a"]
    unknown = -float("inf")
    assert choose(["x y", "a dog", "a dog runs"], [unknown] * 3, 1, random) == ["a dog"]


def test_the_ranked_choice_is_the_likeliest_by_the_models_own_forward(
    model, processor, save_images, tmp_path, draw_weights
):
    from hf_gru_captioner import Captioner

    texts = ["A brown dog runs", "A dog jumps on the beach", "The dog is blue", "A girl in pink", "A dog unheard of"]
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps({"captions": texts, "labels": ["dog"]}))
    captioner = Captioner(draw_weights(model, 3), processor)
    images = save_images(["dog"], ["dog"], ["dog"])
    options = BorrowingOptions(**ANY_LENGTH, per_image=1)
    scorer = captioner.mean_log_probabilities
    borrow_captions(images, [path], tmp_path / "new", options=options, scorer=scorer, scorer_name="me")
    rows = load_dataset(str(tmp_path / "new"), split="train")
    for row in rows:
        pixel_values = processor(images=row["image"])["pixel_values"]
        losses = {
            text: model(pixel_values=pixel_values, labels=processor.encode_captions(text)).loss.item()
            for text in texts[:3]  # of the others one names no dog and one has unknown words
        }
        assert row["captions"] == [min(losses, key=losses.get)]
    assert "ranked by the captioner me" in (tmp_path / "new" / "README.md").read_text()


def test_the_output_keeps_the_encoded_images_and_names_its_sources(save_images, captions, tmp_path):
    images = save_images(["horse"])
    borrow_captions(images, [captions], tmp_path / "new", options=BorrowingOptions(min_words=4, seed=7))
    (file,) = (tmp_path / "new" / "data").iterdir()
    encoded = pq.read_table(images)["image"][0]["bytes"].as_py()
    assert pq.read_table(file)["image"][0]["bytes"].as_py() == encoded
    sources = json.loads(pq.read_schema(file).metadata[b"borrowed_from"])
    assert sources["images"] == "images.parquet"
    assert sources["captions"] == ["captions.jsonl"]
    assert sources["options"]["seed"] == 7
    card = (tmp_path / "new" / "README.md").read_text()
    assert "images.parquet" in card
    assert "captions.jsonl" in card
    assert str(tmp_path) not in card + str(pq.read_schema(file).metadata)


def test_the_same_seed_borrows_the_same_captions(save_images, captions, tmp_path):
    images = save_images(*[["horse"]] * 8)
    drawn = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        options = BorrowingOptions(min_words=4, per_image=2, seed=seed)
        borrow_captions(images, [captions], tmp_path / name, options=options)
        drawn.append(load_dataset(str(tmp_path / name), split="train")["captions"][:])
    assert drawn[0] == drawn[1] != drawn[2]


def test_images_left_out_are_counted(save_images, captions, tmp_path):
    images = save_images(["horse"], [], ["zebra"], ["horse"])
    table = pq.read_table(images).to_pylist()
    table[3]["image"]["bytes"] = b"not an image"
    Dataset.from_list(table).cast_column("image", ImageFeature(decode=False)).to_parquet(images)
    report = borrow_captions(images, [captions], tmp_path / "new", options=BorrowingOptions(min_words=4))
    counts = (report.num_captioned, report.num_without_labels, report.num_without_candidates, report.num_unreadable)
    assert counts == (1, 1, 1, 1)
    assert report.num_few == 1
    assert report.unnamed == {"zebra": 1}
    assert [labels for _, labels, _ in report.examples] == [["horse"]]


def test_many_images_become_several_files(save_images, captions, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_gru_captioner.data.borrowing.BYTES_PER_FILE", 1)
    monkeypatch.setattr("hf_gru_captioner.data.borrowing.ROWS_AT_ONCE", 2)
    images = save_images(*[["horse"]] * 5)
    borrow_captions(images, [captions], tmp_path / "new", options=BorrowingOptions(min_words=4))
    assert len(list((tmp_path / "new" / "data").iterdir())) == 3
    assert [image.width for image in load_dataset(str(tmp_path / "new"), split="train")["image"]] == [*range(40, 45)]


def test_class_labels_are_labels(make_photo, tmp_path):
    for number, label in enumerate(("dog", "horse")):
        (tmp_path / "set" / label).mkdir(parents=True)
        make_photo(number).save(tmp_path / "set" / label / "1.png")
    (tmp_path / "texts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in DONORS))
    options = BorrowingOptions(min_words=4, per_image=1)
    borrow_captions(tmp_path / "set", [tmp_path / "texts.jsonl"], tmp_path / "new", options=options)
    rows = load_dataset(str(tmp_path / "new"), split="train")
    assert rows["labels"][:] == [["dog"], ["horse"]]
    assert ["dog" in row["captions"][0] for row in rows] == [True, False]


def test_class_labels_of_captions_are_read_by_their_names(tmp_path):
    rows = Dataset.from_dict({"caption": ["a dog", "a cat"], "label": [1, 0]})
    rows.cast_column("label", ClassLabel(names=["cat", "dog"])).to_parquet(tmp_path / "rows.parquet")
    assert load_donors(tmp_path / "rows.parquet") == [Donor(["a dog"], ["dog"]), Donor(["a cat"], ["cat"])]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"labels": ["dog"]}, "has no captions in a known layout. Columns found: labels"),
        ({"captions": ["a dog"]}, "has no labels: add a column 'labels'"),
        ({"captions": ["a dog"], "labels": [1]}, "a list of texts is expected"),
        ({"captions": [""], "labels": ["dog"]}, "has no row with captions and labels"),
    ],
)
def test_captions_without_labels_and_labels_without_captions_are_refused(tmp_path, row, message):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(UsageError, match=message):
        load_donors(tmp_path / "rows.jsonl")


def test_images_are_needed_and_an_output_is_not_overwritten(save_images, captions, tmp_path):
    with pytest.raises(UsageError, match="has no column of images"):
        borrow_captions(captions, [captions], tmp_path / "new")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="old exists: remove it, or name another folder"):
        borrow_captions(save_images(["horse"]), [captions], tmp_path / "old")
    assert (tmp_path / "old" / "thesis.txt").read_text() == "mine"


def test_no_caption_at_all_writes_nothing_and_says_what_is_missing(save_images, captions, tmp_path):
    with pytest.raises(UsageError, match=r"no caption names zebra; .* --synonyms"):
        borrow_captions(save_images(["zebra"]), [captions], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_run_that_fails_leaves_no_output(save_images, captions, tmp_path):
    def fail(images, candidates):
        raise ValueError("the model broke")

    with pytest.raises(ValueError, match="the model broke"):
        borrow_captions(
            save_images(["horse"]), [captions], tmp_path / "new", scorer=fail, options=BorrowingOptions(min_words=4)
        )
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("new")]


@pytest.mark.parametrize(
    "options", [{"per_image": 0}, {"per_image": 31}, {"min_words": 15}, {"min_words": 0}, {"seed": -1}]
)
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(UsageError, match="must be at least"):
        BorrowingOptions(**options)


def test_files_outside_of_the_dataset_are_not_copied_into_the_output(captions, make_photo, tmp_path):
    """A downloaded dataset may refer to any file on this machine."""
    secret = io.BytesIO()
    make_photo(9).save(secret, "PNG")
    (tmp_path / "private.png").write_bytes(secret.getvalue())
    inside = io.BytesIO()
    make_photo(1).save(inside, "PNG")
    images = [{"bytes": None, "path": str(tmp_path / "private.png")}, {"bytes": inside.getvalue(), "path": None}]
    rows = Dataset.from_dict({"image": images, "labels": [["horse"], ["horse"]]})
    (tmp_path / "set").mkdir()
    rows.cast_column("image", ImageFeature(decode=False)).to_parquet(tmp_path / "set" / "train.parquet")
    report = borrow_captions(tmp_path / "set", [captions], tmp_path / "new", options=BorrowingOptions(min_words=4))
    assert (report.num_captioned, report.num_unreadable) == (1, 1)
