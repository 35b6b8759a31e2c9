import json

import pytest
from pycocotools.coco import COCO

from hf_gru_captioner.evaluation.coco import match, read_coco_annotations, read_coco_results, write_results

REFERENCES = {"42": ["A dog runs.", "a brown dog"], "7": ["children play"]}


@pytest.fixture
def write(tmp_path):
    """Writes JSON, or text unchanged, to a file and returns its path."""

    def write(content):
        path = tmp_path / "file.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


def row(image_id, caption="a dog"):
    return {"image_id": image_id, "caption": caption}


def test_results_come_back_as_they_were_written(tmp_path):
    written = {"42": 'a "naïve" 狗 \n', "a.jpg": "", "007": "x", "0": "y", "²": "z"}
    write_results(tmp_path / "results.json", list(written), list(written.values()))
    assert read_coco_results(tmp_path / "results.json") == written
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_ids_that_are_whole_numbers_are_written_as_numbers_and_no_others(tmp_path):
    image_ids = ["42", "0", "007", "4.0", "-1", "²", "1e3", "a.jpg", " 7", "7\n"]
    write_results(tmp_path / "results.json", image_ids, [""] * len(image_ids))
    rows = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [each["image_id"] for each in rows] == [42, 0, *image_ids[2:]]


def test_a_failed_write_leaves_the_results_before_whole(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, ["1"], ["a dog"])
    with pytest.raises(ValueError, match="shorter"):
        write_results(path, ["1", "2"], ["a cat"])
    with pytest.raises(UnicodeEncodeError):
        write_results(path, ["1"], ["half a pair \ud83d"])
    assert read_coco_results(path) == {"1": "a dog"}


def test_references_are_in_the_order_in_which_their_images_appear(write):
    rows = [row(7, "children play"), row(42, "A dog runs."), row("9", "a bike"), row(42, "a brown dog")]
    annotations = {"info": {}, "images": [{"id": 42}, {"id": 7}], "annotations": rows}
    assert list(read_coco_annotations(write(annotations)).items()) == [*REFERENCES.items(), ("9", ["a bike"])]
    del annotations["images"]
    assert list(read_coco_annotations(write(annotations))) == ["7", "42", "9"]


def test_a_byte_order_mark_does_not_disturb(write):
    assert read_coco_results(write("\ufeff" + json.dumps([row(1)]))) == {"1": "a dog"}


def test_cocos_own_tools_read_what_is_written(tmp_path, write):
    annotations = COCO(
        write({"images": [{"id": 42}, {"id": 7}], "annotations": [{**row(42), "id": 1}, {**row(7), "id": 2}]})
    )
    write_results(tmp_path / "results.json", ["42", "7"], ["one", "two"])
    assert annotations.loadRes(str(tmp_path / "results.json")).imgToAnns[7][0]["caption"] == "two"


def test_results_are_put_into_the_order_of_the_references():
    image_ids, predictions, references = match({"7": "seven", "42": "forty-two"}, REFERENCES)
    assert image_ids == ["42", "7"]
    assert predictions == ["forty-two", "seven"]
    assert references == [["A dog runs.", "a brown dog"], ["children play"]]


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({"42": ""}, "Found no result for 1 image (7). Pass results and annotations of the same images."),
        ({"42": "", "7": "", "8": ""}, "Found results without annotations for 1 image (8). Pass"),
        (
            {f"{number}": "" for number in range(100, 1300)},
            "Found results without annotations for 1,200 images (100, 101, 102, 103, 104 and 1,195 more) and no result",
        ),
    ],
)
def test_results_of_other_images_are_refused(results, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared below
        match(results, REFERENCES)
    assert str(error.value).startswith(message)


ROW_NEEDS = 'row 2 needs an "image_id" (number or text) and a "caption" (text), found '


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (read_coco_results, "", " is empty."),
        (read_coco_annotations, " \n", " is empty."),
        (read_coco_results, [], " has no captions."),
        (read_coco_annotations, {"images": [], "annotations": []}, " has no captions."),
        (read_coco_results, "[{]", " is not JSON: Expecting property name enclosed in double quotes: line 1 column 3"),
        (read_coco_annotations, '{"images": [],\n', ": line 2 column 1"),
        (read_coco_results, {"annotations": []}, " is not a list of results, [{"),
        (read_coco_annotations, [row(1)], ' has no annotations, {"images":'),
        (read_coco_annotations, {"annotations": "x"}, ' has no annotations, {"images":'),
        (read_coco_results, [row(1), {"image_id": 2}], f': {ROW_NEEDS}{{"image_id": 2}}.'),
        (read_coco_results, [row(1), {"id": 2, "caption": "a"}], f': {ROW_NEEDS}{{"id": 2, "caption": "a"}}.'),
        (read_coco_results, [row(1), row(2, None)], f': {ROW_NEEDS}{{"image_id": 2, "caption": null}}.'),
        (read_coco_results, [row(1), "x" * 100], f': {ROW_NEEDS}"{"x" * 79} ....'),
        (read_coco_annotations, {"annotations": [row(1), row(2.5)]}, ROW_NEEDS),
        (
            read_coco_annotations,
            {"images": [{"id": 1}, {}], "annotations": [row(1)]},
            ': image 2 needs an "id", found {}.',
        ),
        (read_coco_results, [row(1), row(2), row("1")], " has more than one caption of image 1. Keep one"),
        (
            read_coco_annotations,
            {"images": [{"id": 1}, {"id": 2}, {"id": 3}], "annotations": [row(2)]},
            " has no caption for 2 images (1, 3). Add",
        ),
    ],
)
def test_a_broken_file_ends_in_one_line_that_names_it(write, read, content, message):
    path = write(content)
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared below
        read(path)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_bytes_that_are_not_text_are_not_json(tmp_path):
    path = tmp_path / "latin.json"
    path.write_bytes(b'[{"image_id": 1, "caption": "caf\xe9"}]')
    with pytest.raises(ValueError, match=r"latin\.json is not JSON: .*0xe9"):
        read_coco_results(path)


@pytest.mark.parametrize("read", [read_coco_results, read_coco_annotations])
def test_a_missing_file_is_named(tmp_path, read):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        read(tmp_path / "nowhere.json")


@pytest.mark.parametrize("read", [read_coco_results, read_coco_annotations])
def test_an_overlong_caption_is_refused(tmp_path, read):
    """The longest common subsequence of two texts of a million words would take forever."""
    rows = [{"image_id": 1, "caption": "a dog"}, {"image_id": 2, "caption": "word " * 200_000}]
    (tmp_path / "captions.json").write_text(json.dumps(rows if read is read_coco_results else {"annotations": rows}))
    with pytest.raises(ValueError, match="row 2 has a caption of 1,000,000 characters, more than 10,000"):
        read(tmp_path / "captions.json")
