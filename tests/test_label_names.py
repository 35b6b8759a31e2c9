import math

import pytest

from hf_gru_captioner.errors import UsageError
from hf_gru_captioner.label_names import LabelNames, plural_of, read_synonyms

SYNONYMS = {"cat": ["kitten"], "person": ["man", "woman", "crowd", "rider"], "skis": ["rider"], None: ["dog house"]}
LABELS = ["cat", "dog", "hot dog", "person", "sheep", "Bus", "scissors"]


@pytest.fixture(scope="module")
def names():
    return LabelNames(LABELS, SYNONYMS)


def said(names, caption):
    return {names.labels[label]: tuple(number) for label, number in names.said(caption).items()}


@pytest.mark.parametrize(
    ("name", "plural"),
    [
        *[("dog", "dogs"), ("bus", "buses"), ("wine glass", "wine glasses"), ("bench", "benches"), ("box", "boxes")],
        *[("pony", "ponies"), ("monkey", "monkeys"), ("knife", "knives"), ("sheep", "sheep"), ("person", "people")],
        *[("fireman", "firemen"), ("woman", "women"), ("human", "humans"), ("calf", "calves"), ("hot dog", "hot dogs")],
    ],
)
def test_plurals(name, plural):
    assert plural_of(name) == plural


@pytest.mark.parametrize(
    ("caption", "labels"),
    [
        ("A dog on a lawn", {"dog"}),
        ("The dog's dinner", {"dog"}),
        ("Kittens, and hot-dogs!", {"cat", "hot dog"}),
        ("A hot dog with mustard", {"hot dog"}),
        ("A cat in a dog house", {"cat"}),
        ("Two buses", {"bus"}),
        ("A rider", {"person", "skis"}),
        ("A doggy bag in a category", set()),
    ],
)
def test_labels_are_named_by_whole_words_the_longest_first(names, caption, labels):
    assert set(said(names, caption)) == labels


@pytest.mark.parametrize(
    ("caption", "label", "number"),
    [
        ("A dog on a lawn", "dog", (1, 1)),
        ("The dogs run", "dog", (2, math.inf)),
        ("Two brown dogs run", "dog", (2, 2)),
        ("A couple of dogs", "dog", (2, 2)),
        ("A herd of sheep", "sheep", (3, math.inf)),
        ("Sheep on a hill", "sheep", (1, math.inf)),
        ("One black sheep", "sheep", (1, 1)),
        ("A dog and another dog", "dog", (2, 2)),
        ("A dog looks at the dog", "dog", (1, 2)),
        ("A cat and a kitten", "cat", (2, 2)),
        ("Two cats and a dog", "dog", (1, 1)),
        ("One of the dogs", "dog", (2, math.inf)),
        ("A man and a woman and two men", "person", (4, 4)),
        ("A crowd on the beach", "person", (3, math.inf)),
        ("A pair of scissors", "scissors", (1, 1)),
    ],
)
def test_the_number_that_a_caption_says(names, caption, label, number):
    assert said(names, caption)[label] == number


def test_synonyms_are_read_from_yaml(tmp_path):
    path = tmp_path / "synonyms.yaml"
    path.write_text("cat: [kitten]\nnull: [cat food]\n")
    assert read_synonyms(path) == {"cat": ["kitten"], None: ["cat food"]}
    (tmp_path / "more.yaml").write_text("cat: [tom]\ncolor: [ginger]")
    assert read_synonyms(path, path) == {"cat": ["kitten"] * 2, None: ["cat food"] * 2}
    assert read_synonyms(path, tmp_path / "more.yaml") == {
        "cat": ["kitten", "tom"], None: ["cat food"], "color": ["ginger"],
    }  # fmt: skip


@pytest.mark.parametrize(
    "text", ["- cat", "cat: kitten", "cat: [1]", "cat: ['!']", "1: [one]", "cat: [", "cat: {a: b}"]
)
def test_what_is_not_a_file_of_synonyms_is_refused_by_name(tmp_path, text):
    path = tmp_path / "synonyms.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"synonyms\.yaml"):
        read_synonyms(path)
