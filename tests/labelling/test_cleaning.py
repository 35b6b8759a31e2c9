from pathlib import Path

import pytest

from hf_gru_captioner.labelling.cleaning import HABITS, Cleaner

DOCS = Path(__file__).parents[2] / "docs" / "distillation.md"


@pytest.mark.parametrize("habit", HABITS, ids=lambda habit: habit.name)
def test_each_habit_is_cleaned_as_its_example_says_and_counted(habit):
    before, after = habit.example
    assert habit.clean(before) == after
    cleaner = Cleaner()
    cleaner(before)
    assert cleaner.counts[habit.name] == 1


@pytest.mark.parametrize(
    ("written", "cleaned"),
    [
        ("arafed man in a suit and tie standing in a room", "a man in a suit and tie standing in a room"),
        ("arafed image of an old car", "an old car"),
        ("arafed woman and arafed child on a bench", "a woman and a child on a bench"),
        ("there are two arafed dogs running in the grass", "two dogs running in the grass"),
        ("there is a arafed dog that is sitting on the couch", "a dog sitting on the couch"),
        ("there is an arafed cat with arafed owl", "a cat with an owl"),
        ("arafed people on the beach", "people on the beach"),
        ("there are two men that are playing soccer in the snow", "two men playing soccer in the snow"),
        ("there's a bus in this picture.", "a bus"),
        ("there is a picture of a dog on the grass", "a dog on the grass"),
        ("In this image, there is a dog on the grass.", "a dog on the grass"),
        ("In the picture we can see a red car.", "a red car"),
        ("The photo shows a dog on grass. It is brown and looks happy.", "a dog on grass"),
        ("This is an image of Mr. Smith in a hat. He smiles.", "Mr. Smith in a hat"),
        ("**A dog runs on the beach.**", "A dog runs on the beach"),
        ('"A red bottle on a blue table."', "A red bottle on a blue table"),
        ('"a dog".', "a dog"),
        ('"A dog runs." It is brown.', "A dog runs"),
        ('a dog."', "a dog"),
        ('"a dog', "a dog"),
        ("**‘a dog’s bowl’**", "a dog’s bowl"),
        ("“a dog and a cat", "a dog and a cat"),
        ('a sign that says "stop".', 'a sign that says "stop"'),
        ('a sign that says "no parking."', 'a sign that says "no parking"'),
        ('"Stop" sign on a pole.', '"Stop" sign on a pole'),
        ("a shop called “Joe’s”.", "a shop called “Joe’s”"),
        ('a photo of "Stop" on a sign', '"Stop" on a sign'),
        ("Assistant: A dog\nUser: thanks", "A dog"),
        ("a dog in in the the grass", "a dog in the grass"),
        ("a boy with a yo yo yo", "a boy with a yo"),
        ("a The the red RED dog", "a The red dog"),
        ("a red bottle bottle bottle on a table", "a red bottle on a table"),
        ("a close up of a flower", "a flower"),
        ("a dog with a 3.5 inch collar", "a dog with a 3.5 inch collar"),
    ],
)
def test_captions_of_known_teachers(written, cleaned):
    assert Cleaner()(written) == cleaned


@pytest.mark.parametrize(
    "caption",
    [
        "a man takes a photo of a dog",
        "a woman looks at a picture of a horse on the wall",
        "a picture of a dog hangs on a wall",
        "people sit there in the sun",
        "a boy in the picture frame shop",
        "the dog is in the water",
        "a giraffe eats leaves",
        "two dogs that are running",
        "A man in a red T-shirt, who is jumping",
        'a sign that reads "no parking"',
        '"Stop" sign on a pole',
        '"Stop" and "Go"',
        "a boy plays with a yo yo on the grass",
        "a choo choo train",
        "the number 7 7 on a bus",
    ],
)
def test_what_is_in_the_photo_stays(caption):
    assert Cleaner()(caption) == caption


def test_what_cannot_be_mended_is_left_out():
    cleaner = Cleaner()
    assert [cleaner(each) for each in ("araffe standing in a field", "arafed", "...", "", "there is araffe")] == [
        ""
    ] * 5


def test_the_echo_of_the_prompt_is_cut_and_counted():
    cleaner = Cleaner("a photo of")
    assert cleaner("A photo  of a dog.") == "a dog"
    assert cleaner("a dog") == "a dog"
    assert cleaner.counts[Cleaner.ECHO] == 1


def test_cleaning_can_be_switched_off():
    cleaner = Cleaner("a photo of", is_on=False)
    assert cleaner(" a photo of arafed dog.\n") == "a photo of arafed dog."
    assert not cleaner.counts


def test_the_docs_list_every_habit_with_its_example():
    text = DOCS.read_text()
    for habit in HABITS:
        before, after = (" ".join(each.split()) for each in habit.example)
        assert f"| {habit.name} | {before} | {after} |" in text, habit.name
