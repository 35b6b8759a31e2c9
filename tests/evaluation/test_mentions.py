from hf_gru_captioner.evaluation.mentions import LabelRecord, label_mentions
from hf_gru_captioner.label_names import LabelNames

NAMES = LabelNames(["cat", "dog", "hot dog", "person"], {"person": ["man", "woman"], "cat": ["kitten"]})


def test_labels_are_counted_where_they_are_and_where_they_are_not():
    found = label_mentions(
        ["Two kittens on a bed", "A man with a dog", "A dog eats a hot dog", "A sky", "A cat"],
        [["cat", "cat"], ["Person"], ["hot_dog"], ["dog"], None],
        [["a cat"], ["a man and his dogs"], ["food"], ["a dog"], ["a dog"]],
        NAMES,
    )
    assert found.records == [
        LabelRecord("dog", images=1, named=0, said=2, wrong=1),  # the man's dog is in a reference caption
        LabelRecord("cat", images=1, named=1, said=1, wrong=0),
        LabelRecord("hot dog", images=1, named=1, said=1, wrong=0),
        LabelRecord("person", images=1, named=1, said=1, wrong=0),
    ]
    assert found.images == 4  # the labels of the fifth are unknown
    assert found.chair_i == 1 / 5
    assert found.chair_s == 1 / 4
    assert found.table(1).splitlines()[1:] == [
        f"{'dog':<31}{1:>8}{0:>8}{2:>8}{1:>8}",
        "Not there (CHAIR): 20.0 % of the labels that captions name, in 25.0 % of 4 captions.",
    ]


def test_captions_that_name_nothing_have_no_share():
    found = label_mentions(["A sky"], [["dog"]], [["the sky"]], NAMES)
    assert found.chair_i is None
    assert found.chair_s == 0
    assert "none named" in found.table()
