import pytest

from hf_gru_captioner.evaluation import CaptionSet, leave_one_out


def test_each_reference_is_left_out_once():
    rounds = leave_one_out(CaptionSet(["x", "y"], [["a", "b", "c"], ["d", "e", "f"]], "none"))
    assert [list(each) for each in rounds] == [
        [("a", ["b", "c"]), ("d", ["e", "f"])],
        [("b", ["a", "c"]), ("e", ["d", "f"])],
        [("c", ["a", "b"]), ("f", ["d", "e"])],
    ]


def test_images_with_fewer_references_start_over_and_those_with_one_take_no_part():
    rounds = leave_one_out(CaptionSet(["x", "y", "z"], [["a", "b", "c"], ["d", "e"], ["f"]], "none"))
    assert [each.hypotheses for each in rounds] == [["a", "d"], ["b", "e"], ["c", "d"]]


def test_without_a_second_reference_there_is_nothing_to_compare():
    with pytest.raises(ValueError, match="No image has two or more references"):
        leave_one_out(CaptionSet(["x"], [["a"]], "none"))
